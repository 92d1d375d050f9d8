"""
The metric is the contest's, to the last digit: normaliser, WER, IPA CER.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import jiwer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kidspeech.errors import ScoreError
from kidspeech.metrics import ChildWER, normalise, normalise_ipa
from kidspeech.metrics.alignment import align, total

PAIRS = [json.loads(line) for line in (Path(__file__).parent / "data" / "nasty_pairs.jsonl").read_text("utf-8").splitlines()]
CONTEST = {"archaeology": "archeology", "pummelled": "pummeled", "pummelling": "pummeling", "mm": "hmm"}
AWKWARD = (
    *(
        "one",
        "two",
        "twenty",
        "hundred",
        "million",
        "point",
        "double",
        "oh",
        "first",
        "1960s",
        "th",
        "½",
        "1.5",
        "minus",
        "and",
    ),
    *("a", "half", "$5", "%", "per", "cent", "dollars", "¢7", "$", "mm", "'s", "é", "(", "]", ".", "-", "x", "archaeology"),
)
WORDS = st.lists(st.sampled_from("abcde"), max_size=7)


@pytest.fixture(scope="module")
def contest_normaliser():
    """
    transformers' class with the contest's spellings: another implementation than the one under test.
    """
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    table = Path(find_spec("whisper").origin).parent / "normalizers" / "english.json"
    return EnglishTextNormalizer(json.loads(table.read_text("utf-8")) | CONTEST)


@pytest.mark.unit
def test_there_are_enough_nasty_pairs():
    """The frozen file holds at least 100 pairs, and none twice."""
    assert len({(pair["reference"], pair["prediction"]) for pair in PAIRS}) == len(PAIRS) >= 100


@pytest.mark.unit
@pytest.mark.parametrize("side", ["reference", "prediction"])
def test_normalised_as_the_contest_does(contest_normaliser, side):
    """Every nasty text is normalised as frozen, and as transformers' normaliser does with the contest's spellings."""
    texts = [pair[side] for pair in PAIRS]
    assert [normalise(text) for text in texts] == [pair[f"{side}_normalised"] for pair in PAIRS]
    assert [normalise(text) for text in texts] == [contest_normaliser(text) for text in texts]


@pytest.mark.unit
def test_corpus_wer_to_the_last_digit(contest_normaliser):
    """WER over the nasty pairs equals jiwer's over independently normalised texts, bit for bit."""
    said, heard = ([pair[side] for pair in PAIRS] for side in ("reference", "prediction"))
    expected = jiwer.wer([contest_normaliser(text) for text in said], [contest_normaliser(text) for text in heard])
    assert ChildWER().compute(predictions=heard, references=said)["wer"] == expected


@pytest.mark.unit
@pytest.mark.parametrize(
    ("said", "heard", "wer"),
    [("", "x", 1.0), ("", "x y", 2.0), ("", "", 0.0), ("um", "x", 1.0), ("x", "", 1.0), ("x", "um", 1.0)],
)
def test_empty_texts(said, heard, wer):
    """One clip with nothing on a side scores what jiwer says."""
    assert (
        ChildWER().compute(predictions=[heard], references=[said])["wer"]
        == wer
        == jiwer.wer([normalise(said)], [normalise(heard)])
    )


@pytest.mark.unit
def test_silence_costs_insertions_in_a_corpus():
    """Words made up on a silent clip count as insertions over the corpus' words."""
    found = ChildWER().compute(predictions=["hello there", "a b"], references=["", "a b"])
    assert (found["wer"], found["words"], found["insertions"], found["exact"]) == (1.0, 2, 2, 1)


@pytest.mark.unit
def test_groups():
    """Figures by group add up to the whole."""
    found = ChildWER().compute(predictions=["a", "b x", ""], references=["a", "b", "c d"], groups=["5-7", "8-11", "5-7"])
    assert found["wer"] == 3 / 4
    assert {name: figures["wer"] for name, figures in found["groups"].items()} == {"5-7": 2 / 3, "8-11": 1.0}


@pytest.mark.unit
def test_lists_of_different_length_are_refused():
    """A prediction too few is an error, not a shorter corpus."""
    with pytest.raises(ValueError, match=r"predictions \(1\) and references \(2\)"):
        ChildWER().compute(predictions=["a"], references=["a", "b"])


@pytest.mark.unit
def test_a_number_too_long_to_read():
    """A loop of thousands of digits is named as the trouble; the contest's scorer stops at it too."""
    with pytest.raises(ScoreError, match="number too long to read"):
        normalise("1" * 5000)


@pytest.mark.integration
def test_no_network_and_no_files(tmp_path):
    """ChildWER works in two processes at once, offline, and leaves nothing in the cache."""
    code = (
        "import multiprocessing; from kidspeech.metrics import ChildWER\n"
        "def wer(heard): return ChildWER().compute(predictions=[heard], references=['a c'])['wer']\n"
        "print(multiprocessing.get_context('fork').Pool(2).map(wer, ['a b', 'a c']))"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[0.5, 0.0]"
    assert [path for path in tmp_path.rglob("*") if path.is_file() or "child_wer" in path.name] == []


@pytest.mark.integration
def test_scoring_imports_no_torch():
    """Scoring costs no torch, numba or evaluate: only ChildWER brings them."""
    code = (
        "import sys; from kidspeech.metrics import normalise, score; normalise('mm'); "
        "print([name for name in ('torch', 'numba', 'evaluate', 'whisper') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.unit
@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=6))
def test_errors_are_the_fewest_possible(pairs):
    """Errors equal an independent Levenshtein distance, and each alignment turns the reference into the prediction."""
    said, heard = ([" ".join(pair[side]) for pair in pairs] for side in (0, 1))
    figure, clips = align(heard, said)
    distances = [levenshtein(a, b) for a, b in pairs]
    assert [clip.tally.errors for clip in clips] == distances
    words = sum(len(a) for a, _ in pairs)
    assert figure == total(clip.tally for clip in clips).rate == (sum(distances) / words if words else sum(distances))
    for (a, b), clip in zip(pairs, clips, strict=True):
        steps = list(clip.steps())
        assert [step.reference for step in steps if step.reference] == a
        assert [step.prediction for step in steps if step.prediction] == b
        assert sum(step.kind != "equal" for step in steps) == clip.tally.errors


@pytest.mark.unit
@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(AWKWARD), max_size=8).map(" ".join) | st.text(max_size=20))
def test_any_text_is_normalised_as_the_contest_does(contest_normaliser, text):
    """Fuzzed texts come out as from transformers' normaliser with the contest's spellings."""
    assert normalise(text) == contest_normaliser(text)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ˈkæt͡ʃɪŋ", "kæʧɪŋ"),
        ("d͜ʒʌmp", "ʤʌmp"),
        ("tʃ dʒ", "ʧ ʤ"),
        ("ẽĩõũ ɑ̃ o\u0303", "eiou ɑ o"),
        ("bɝd ˌbɚd", "bɚd bɚd"),
        (" a\t b\u00a0c. (d)! ", "a b c d"),
        ("c\u0327", "ç"),
        ("siːt", "siːt"),
        ("", ""),
        ("ˈ.", ""),
    ],
)
def test_ipa(text, expected):
    """IPA loses stress, tie bars, nasalisation and punctuation; ɝ is ɚ, affricates are ligatures, spaces are single."""
    assert normalise_ipa(text) == expected


def levenshtein(a: list[str], b: list[str]) -> int:
    """
    The textbook's table, row by row.
    """
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        above, row = row, [i]
        for j, y in enumerate(b, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
    return row[-1]
