"""
What `score` tells beside the figure, its intervals, and the command.
"""

from __future__ import annotations

import json
import random
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kidspeech.cli.main import main
from kidspeech.errors import ManifestError, ScoreError
from kidspeech.manifest import Utterance
from kidspeech.metrics import ChildWER, compare, read_predictions, record, score, text_field
from kidspeech.metrics.bootstrap import RESAMPLES, SEED, ChildSums, interval, resample, share_below
from kidspeech.metrics.groups import duration_bin


def clip(name: str, text: str, child: str = "C1", age: str = "5-7", **fields) -> Utterance:
    """
    A reference.
    """
    return Utterance(name, f"audio/{name}.flac", child, age_bucket=age, orthographic_text=text, **fields)


REFERENCES = [
    clip("u1", "the red cat", "C1", "5-7", audio_duration_sec=1.0),
    clip("u2", "a dog ran", "C2", "5-7", audio_duration_sec=2.5),
    clip("u3", "", "C2", "5-7", audio_duration_sec=0.4),
    clip("u4", "three cats", "C3", "8-11"),
]
PREDICTIONS = {"u1": "the bed cat", "u2": "a dog ran", "u3": "thank you", "u4": "Three dogs ran."}


@pytest.mark.unit
def test_a_small_score_by_hand():
    """Counts, exact clips, silent clips and groups are what one counts by hand."""
    found = score(PREDICTIONS, REFERENCES)
    assert found.figure == found.total.rate == 5 / 8
    tally = found.total.tally
    assert (tally.units, tally.substitutions, tally.deletions, tally.insertions) == (8, 2, 0, 3)
    assert (found.total.clips, found.total.exact, found.total.children) == (4, 1, 3)
    assert (found.silence.clips, found.silence.broken, found.silence.insertions) == (1, 1, 2)
    assert {group.name: group.rate for group in found.by["age_bucket"]} == {
        "3-4": None,
        "5-7": 3 / 6,
        "8-11": 2 / 2,
        "12+": None,
    }
    assert [(group.name, group.clips) for group in found.by["duration"]] == [
        ("under 1 s", 1),
        ("1–2 s", 1),
        ("2–4 s", 1),
        ("unknown", 1),
    ]
    assert ("substitute", "red", "bed", 1) in [(c.kind, c.reference, c.prediction, c.count) for c in found.confusions]
    assert [each.utterance.utterance_id for each in found.worst(9)] == ["u3", "u4", "u1"]


@pytest.mark.unit
def test_order_of_the_predictions_does_not_matter():
    """Predictions belong to references by id, in whatever order they stand."""
    assert score(dict(reversed(PREDICTIONS.items())), REFERENCES).figure == score(PREDICTIONS, REFERENCES).figure


@pytest.mark.unit
@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.text("ab 1", max_size=9), st.text("ab 1", max_size=9), st.sampled_from("XYZ")), min_size=1, max_size=12
    )
)
def test_score_and_the_metric_agree(rows):
    """`score` and ChildWER give one figure, and age groups add up to it."""
    references = [clip(str(number), said, child) for number, (said, _, child) in enumerate(rows)]
    found = score({str(number): heard for number, (_, heard, _) in enumerate(rows)}, references)
    expected = ChildWER().compute(predictions=[heard for _, heard, _ in rows], references=[said for said, _, _ in rows])
    assert (found.figure, found.total.tally.units, found.total.exact) == (
        expected["wer"],
        expected["words"],
        expected["exact"],
    )
    for groups in found.by.values():
        assert sum(group.tally.errors for group in groups) == found.total.tally.errors


@pytest.mark.unit
def test_one_child_has_no_interval():
    """An interval is claimed only where two children or more have words, and never where a child is not known."""
    groups = {group.name: group for group in score(PREDICTIONS, REFERENCES).by["age_bucket"]}
    assert groups["5-7"].interval is not None
    assert (groups["8-11"].children, groups["8-11"].interval) == (1, None)
    assert (groups["3-4"].children, groups["3-4"].rate, groups["3-4"].interval) == (0, None, None)
    nameless = [*REFERENCES[:3], clip("u4", "three cats", child="")]
    assert (score(PREDICTIONS, nameless).total.children, score(PREDICTIONS, nameless).total.interval) == (None, None)


@pytest.mark.unit
def test_bootstrap_equals_a_plain_loop():
    """The vectorised bootstrap gives the very rates of a loop over children drawn one by one."""
    sums = ChildSums([3, 0, 7, 2, 5], [10, 4, 9, 0, 20])
    draw = np.random.default_rng(SEED)
    slow = []
    for _ in range(10_000):
        children = draw.integers(5, size=5, dtype=np.uint32)
        errors, units = sum(sums.errors[c] for c in children), sum(sums.units[c] for c in children)
        if units:
            slow.append(errors / units)
    slow.sort()
    assert sorted(resample(sums)) == slow
    low, high = interval(resample(sums))
    assert low == pytest.approx(slow[int(0.025 * len(slow))], abs=0.01)
    assert high == pytest.approx(slow[int(0.975 * len(slow))], abs=0.01)


@pytest.mark.unit
def test_bootstrap_agrees_with_the_textbook_error():
    """With many alike children the interval is the rate ± 1.96 standard errors of the ratio."""
    generator = np.random.default_rng(7)
    units = np.full(400, 50)
    errors = generator.binomial(50, 0.3, size=400)
    low, high = interval(resample(ChildSums(errors.tolist(), units.tolist())))
    rate, spread = errors.sum() / units.sum(), 1.96 * errors.std() / 50 / 20
    assert (low, high) == pytest.approx((rate - spread, rate + spread), abs=0.001)


@pytest.mark.integration
def test_ten_thousand_resamples_of_ten_thousand_children_fit_into_memory():
    """The worst case, every utterance its own child: all resamples come, and are drawn in parts, not 800 MB at once."""
    generator = random.Random(3)
    sums = ChildSums([generator.randrange(4) for _ in range(10_000)], [generator.randrange(1, 12) for _ in range(10_000)])
    tracemalloc.start()
    rates = resample(sums)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rates is not None
    assert len(rates) == RESAMPLES
    assert peak < 100e6


@pytest.mark.unit
def test_paired_difference():
    """A model that is better on every child is so with certainty, though the two intervals overlap widely."""
    said = list("abcdefghij")
    references = [clip(f"u{n}", " ".join(said), f"C{n}") for n in range(8)]
    worse = {f"u{n}": " ".join(said[n + 1 :]) for n in range(8)}
    better = {f"u{n}": " ".join(said[n:]) for n in range(8)}
    ours, other = score(better, references), score(worse, references)
    overall = compare(ours, other)[0]
    assert overall.difference == pytest.approx(-0.1)
    assert overall.probability == 1.0
    assert overall.interval == pytest.approx((-0.1, -0.1))
    assert ours.total.interval.high > other.total.interval.low
    assert [each.name for each in compare(ours, other)] == ["all", "3-4", "5-7", "8-11", "12+"]
    assert compare(ours, ours)[0].probability == 0.5


@pytest.mark.unit
def test_scores_of_other_references_are_not_compared():
    """A difference is over the same clips, or not at all."""
    with pytest.raises(ScoreError, match="same references"):
        compare(score(PREDICTIONS, REFERENCES), score({"u1": "x"}, REFERENCES[:1]))


@pytest.mark.unit
def test_share_below_counts_ties_half():
    """Draws without a difference speak for both sides."""
    assert share_below(np.array([-1.0, 0.0, 0.0, 1.0])) == 0.5


@pytest.mark.unit
@pytest.mark.parametrize(
    ("predictions", "references", "words"),
    [
        ({"u1": "x"}, REFERENCES, "3 references without a prediction: u2, u3, u4"),
        (PREDICTIONS | {"v": ""}, REFERENCES, "1 predictions without a reference: v"),
        (PREDICTIONS, [*REFERENCES, REFERENCES[0]], "1 ids that stand several times in the references: u1"),
        ({}, [], "there are no references"),
    ],
)
def test_ids_that_do_not_match(predictions, references, words):
    """Missing, extra and doubled ids are errors with their number and first examples."""
    with pytest.raises(ScoreError, match=words):
        score(predictions, references)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("seconds", "name"), [(None, "unknown"), (0.0, "under 1 s"), (1.0, "1–2 s"), (29.99, "15–30 s"), (30.0, "30 s and over")]
)
def test_duration_bins(seconds, name):
    """A bin holds its lower edge."""
    assert duration_bin(seconds) == name


@pytest.mark.unit
def test_ipa_scores_characters():
    """phonetic_text is scored by characters after the contest's normalisation."""
    references = [Utterance("a", "", "C1", phonetic_text="ˈkæt͡ʃ"), Utterance("b", "", "C2", phonetic_text="dɔg")]
    found = score({"a": "kætʃ", "b": "dɔk"}, references, text_field="phonetic_text")
    assert (found.metric, found.figure, found.total.tally.units) == ("ipa_cer", 1 / 6, 6)


def write(path: Path, rows) -> Path:
    """
    A JSONL file of *rows*; a text goes in as it is.
    """
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.unit
def test_predictions_are_read_with_all_their_problems(tmp_path):
    """Broken lines, missing texts and repeated ids come together, each with its line."""
    path = write(
        tmp_path / "p.jsonl",
        [
            {"utterance_id": "a", "orthographic_text": ""},
            "{",
            {"utterance_id": "b"},
            {"orthographic_text": "x"},
            {"utterance_id": "a", "orthographic_text": "y"},
        ],
    )
    with pytest.raises(ScoreError) as error:
        read_predictions(path)
    assert re.findall(r"line (\d)", str(error.value)) == ["2", "3", "4", "5", "1"]  # line 5 repeats the id of line 1
    assert "where nothing was heard, give" in str(error.value)


@pytest.mark.unit
def test_the_field_tells_the_metric(tmp_path):
    """The field that predictions hold is found; none or both is an error, and so is a file that is not there."""
    assert text_field(write(tmp_path / "w", [{"utterance_id": "a", "orthographic_text": ""}])) == "orthographic_text"
    assert text_field(write(tmp_path / "i", [{"utterance_id": "a", "phonetic_text": ""}])) == "phonetic_text"
    for row in ({"utterance_id": "a"}, {"orthographic_text": "", "phonetic_text": ""}):
        with pytest.raises(ScoreError, match="either orthographic_text"):
            text_field(write(tmp_path / "x", [row]))
    with pytest.raises(ScoreError, match="no text that can be scored"):
        text_field(write(tmp_path / "empty", []))
    with pytest.raises(ManifestError, match="can't read"):
        text_field(tmp_path / "none")


@pytest.fixture
def files(tmp_path):
    """
    Predictions and references on disk.
    """
    predictions = write(tmp_path / "p.jsonl", [{"utterance_id": k, "orthographic_text": v} for k, v in PREDICTIONS.items()])
    manifest = write(tmp_path / "m.jsonl", [u.as_line() | {"orthographic_text": u.orthographic_text} for u in REFERENCES])
    return str(predictions), str(manifest)


def leave(*arguments: str) -> int:
    """
    The exit code of the command line.
    """
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    return int(left.value.code or 0)


@pytest.mark.integration
def test_the_command_prints_tables(files, capsys):
    """Data goes to stdout, the next command to stderr."""
    assert leave("score", *files) == 0
    out, err = capsys.readouterr()
    assert out.startswith("WER 0.625\n")
    assert re.search(r"8-11 +1\.0000 +– +1 +0% +1 +2", out)
    assert "1 of 1 silent clips got words: 2 insertions" in out
    assert err.startswith("intervals over fewer than 10 children are too narrow")
    assert "\nnext: kidspeech score " in err


@pytest.mark.integration
def test_json_follows_its_schema(files, capsys):
    """`--json` is alone on stdout, and every key in it stands in the documented schema."""
    assert leave("score", *files, "--json", "--against", files[0]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["metric"], found["total"]["wer"], found["total"]["words"]) == ("wer", 0.625, 8)
    assert found["by"]["age_bucket"][2]["interval"] is None
    assert found["against"][0]["difference"] == 0
    undocumented = {key for key in keys(found) if not re.search(rf"\b{key}\b", record.__doc__)}
    assert undocumented == set()


@pytest.mark.integration
def test_files_are_corpora(files, tmp_path, capsys):
    """Several manifests are scored together and apart."""
    more = write(tmp_path / "myst.jsonl", [{"utterance_id": "v1", "orthographic_text": "yes", "child_id": "C9"}])
    with Path(files[0]).open("a") as out:
        out.write('{"utterance_id": "v1", "orthographic_text": "yes"}\n')
    assert leave("score", *files, str(more), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["wer"]) for row in found["by"]["corpus"]] == [("m", 0.625), ("myst", 0.0)]


@pytest.mark.integration
def test_a_manifest_that_names_corpora_is_scored_by_them(files, tmp_path, capsys):
    """DATA/validation.jsonl of a dataset of several corpora tells which clip is of which."""
    lines = [json.loads(line) for line in Path(files[1]).read_text().splitlines()]
    named = write(tmp_path / "named.jsonl", [line | {"corpus": "ab"[line["utterance_id"] == "u1"]} for line in lines])
    assert leave("score", files[0], str(named), "--json") == 0
    groups = json.loads(capsys.readouterr().out)["by"]["corpus"]
    assert {row["name"]: row["clips"] for row in groups} == {"b": 1, "a": 3}


@pytest.mark.integration
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["score", "none.jsonl", "M"], "can't read none.jsonl: No such file or directory"),
        (["score", "P", "P2"], "field orthographic_text is missing"),
        (["score", "P", "M", "M"], "4 ids that stand several times in the references: u1, u2, u3, u4"),
        (["score", "P", "M", "--audio-dir", "."], "--audio-dir is for the players of --report"),
        (["score", "P", "M", "--against", "P2"], "P2 holds phonetic_text, while the other predictions hold orthographic_text"),
        (["score", "P", "M", "--report", "r.html", "--audio-dir", "none"], "no such audio folder: none"),
    ],
)
def test_mistakes_exit_with_2(files, tmp_path, monkeypatch, capsys, arguments, words):
    """A user's mistake ends with 2 and a sentence that names what is wrong."""
    monkeypatch.chdir(tmp_path)
    Path(files[0]).rename("P")
    Path(files[1]).rename("M")
    write(tmp_path / "P2", [{"utterance_id": "u1", "phonetic_text": "x"}])
    assert leave(*arguments) == 2
    assert words in capsys.readouterr().err
    assert not Path("r.html").exists()


def keys(value) -> set[str]:
    """
    All keys in *value*, at any depth.
    """
    if isinstance(value, dict):
        return set(value).union(*(keys(each) for each in value.values()))
    return set().union(*(keys(each) for each in value)) if isinstance(value, list) else set()
