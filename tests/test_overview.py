"""
What inspect says of a dataset equals what was put in; each suspicion meets what it is for and nothing else.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kidspeech.cli.main import main
from kidspeech.clip_table import ClipTable
from kidspeech.config import load_recipe
from kidspeech.dataset import build_dataset
from kidspeech.errors import DatasetError, ManifestError
from kidspeech.overview import Overview, overview_of, read_overview
from kidspeech.overview_page import LISTED, build_overview, listed, write_overview
from kidspeech.suspicion import RULES, suspicions

from corpora import Corpus, Record

EVIL = '<script>alert("x")</script>'


def table(**columns: list[object]) -> ClipTable:
    """
    Return six clean clips of three children, the last in validation, with *columns* in the place of their own.
    """
    texts = ["the red cat sat", "a dog ran off", "one two three", "red sun", "blue moon", "the dog"]
    normal = columns.get("normal", texts)
    arrays = {
        "seconds": [2.0, 2.0, 2.0, 1.0, 1.0, 4.0],
        "sampling_rate": [16_000] * 5 + [8_000],
        "channels": [1] * 4 + [2] * 2,
        "peak": [0.5] * 6,
        "rms": [0.1] * 6,
        "clipped": [0.0] * 6,
        "said_seconds": [2.0, 2.0, 2.0, 1.0, 1.0, float("nan")],
        "words": [len(str(text).split()) for text in normal],
        "side": [0] * 5 + [1],
    }
    lists = {
        "ids": [f"u{number}" for number in range(6)],
        "corpora": [""] * 6,
        "children": ["A", "A", "B", "B", "B", "C"],
        "ages": ["5-7", "5-7", "8-11", "8-11", "8-11", "5-7"],
        "texts": texts,
        "md5s": [f"{number:x}" for number in range(6)],
        "audio_paths": [f"audio/u{number}.flac" for number in range(6)],
        "normal": texts,
    }
    made = {name: np.array(columns.get(name, values)) for name, values in arrays.items()}
    return ClipTable(("train", "validation"), **{name: columns.get(name, values) for name, values in lists.items()}, **made)


@pytest.mark.unit
def test_amounts_by_age_and_side() -> None:
    """
    Children and hours of each age group and side are those of the clips; groups without a clip don't stand there.
    """
    found = overview_of(table(), skipped={"audio not found": 2})

    assert (found.total.utterances, found.total.children, found.total.hours) == (6, 3, 12 / 3600)
    assert {name: (side.utterances, side.children) for name, side in found.sides.items()} == {
        "train": (5, 2),
        "validation": (1, 1),
    }
    assert list(found.ages) == ["5-7", "8-11"]
    assert found.ages["5-7"].total.hours == 8 / 3600
    assert found.ages["8-11"].sides["validation"].utterances == 0
    assert found.ages["8-11"].pace.median == 2.0
    assert found.skipped == {"audio not found": 2}


@pytest.mark.unit
def test_spreads_of_clips_and_children() -> None:
    """
    Each histogram holds every clip, or child, of each side, and the median is numpy's.
    """
    found = overview_of(table(), skipped={})

    assert (found.seconds.low, found.seconds.median, found.seconds.high) == (1.0, 2.0, 4.0)
    assert found.words_per_second.median == 2.0
    assert found.rms_dbfs.mean == pytest.approx(-20)
    for spread, counted in ((found.seconds, (5, 1)), (found.peak_dbfs, (5, 1)), (found.minutes, (2, 1))):
        assert tuple(map(sum, spread.counts.values())) == counted
        assert {len(side) for side in spread.counts.values()} == {len(spread.edges) - 1}
    first = next(place for place, count in enumerate(found.seconds.counts["train"]) if count)
    assert found.seconds.edges[first] <= 1.0 < found.seconds.edges[first + 1]
    assert (found.minutes.low, found.minutes.high) == (4 / 60, 4 / 60)


@pytest.mark.unit
def test_what_lies_beyond_a_histogram_is_in_its_last_bins() -> None:
    """
    One clip of an hour does not squeeze the others into one bar, nor is it lost; silence stands in the first.
    """
    many = {
        name: getattr(table(), name).repeat(200) for name in ("side", "sampling_rate", "channels", "peak", "clipped", "words")
    }
    seconds, rms = np.linspace(1, 5, 1200), np.full(1200, 0.1)
    seconds[7], rms[7] = 3600.0, 0.0
    lists = {
        name: getattr(table(), name) * 200
        for name in ("ids", "corpora", "children", "ages", "texts", "md5s", "audio_paths", "normal")
    }
    found = overview_of(
        ClipTable(("train", "validation"), **many, **lists, seconds=seconds, rms=rms, said_seconds=seconds), skipped={}
    )

    assert found.seconds.edges[-1] < 6
    assert found.seconds.high == 3600
    assert found.seconds.counts["train"][-1] >= 1
    assert found.rms_dbfs.counts["train"][0] == 1


@pytest.mark.unit
def test_words() -> None:
    """
    Vocabulary, words said once, and how much of validation training has never heard, counted by hand.
    """
    words = overview_of(table(normal=["the red cat", "a dog ran", "", "red sun", "red sun", "the moon"]), skipped={}).words

    assert (words.total, words.vocabulary, words.once, words.empty, words.sentences) == (12, 8, 5, 1, 4)
    assert words.frequent[:3] == [("red", 3), ("sun", 2), ("the", 2)]
    assert words.unheard == 0.5  # "moon", of "the moon"
    assert words.heard_sentences == 0.0
    alone = replace(table(), sides=("train",), side=np.zeros(6, np.int8))
    assert overview_of(alone, skipped={}).words.unheard is None


@pytest.mark.unit
def test_clean_clips_raise_no_suspicion() -> None:
    """
    No rule meets ordinary clips.
    """
    assert suspicions(table()) == {}


PLANTED = {
    "same_audio": ({"md5s": ["a", "1", "2", "3", "4", "a"]}, {0, 5}, "as u5, on both sides of the split, with other words"),
    "empty": ({"normal": ["", "a dog ran off", "one", "red sun", "blue moon", "the dog"]}, {0}, "nothing is left"),
    "fast": ({"seconds": [0.5, 2.0, 2.0, 1.0, 1.0, 4.0], "said_seconds": [float("nan")] * 6}, {0}, "4 words in 0.5 s"),
    "slow": ({"seconds": [21.0, 19.0, 2.0, 1.0, 1.0, 4.0], "said_seconds": [float("nan")] * 6}, {0}, "4 words in 21.0 s"),
    "clipped": ({"clipped": [0.02, 0.001, 0, 0, 0, 0]}, {0}, "2.0% of the samples"),
    "quiet": ({"rms": [0.001, 0.0, 0.002, 0.1, 0.1, 0.1]}, {0, 1}, "−60 dBFS"),
    "duration": ({"said_seconds": [3.0, 2.2, 2.0, 1.0, 1.0, 4.0]}, {0}, "3.0 s said, 2.0 s measured"),
    "notation": (
        {"texts": ["[noise] 7 & xxx", 'a-b\'s "c", d?', "é…", "red sun", "blue moon", "the dog"]},
        {0},
        "[noise] 7 & xxx",
    ),
    "repeated": (
        {"children": ["A"] * 6, "normal": ["i like to read"] * 3 + ["red sun"] * 3, "words": [4] * 3 + [2] * 3},
        {0, 1, 2},
        "3 times by this child",
    ),
}


@pytest.mark.unit
@pytest.mark.parametrize("key", [rule.key for rule in RULES])
def test_each_rule_meets_what_it_is_for(key: str) -> None:
    """
    A planted case is found with its particulars, one just within the threshold is not, and no other rule joins in.
    """
    columns, expected, particulars = PLANTED[key]
    found = suspicions(table(**columns))

    assert {clip for clip, reasons in found.items() if key in reasons} == expected
    assert found[0][key] == particulars
    others = {other for reasons in found.values() for other in reasons} - {key}
    assert not others


@pytest.mark.unit
def test_the_list_takes_each_rule_in_its_turn() -> None:
    """
    Hundreds of one kind don't hide the one of another.
    """
    one = overview_of(table(clipped=[0.5, 0, 0, 0, 0, 0]), skipped={}).suspects[0]
    many = [replace(one, utterance_id=f"v{number}") for number in range(300)]
    rare = replace(one, utterance_id="rare", reasons={"repeated": "3 times by this child"})

    assert len(listed([*many, rare])) == LISTED
    assert listed([*many, rare])[1] is rare


@pytest.mark.unit
def test_the_page_stands_by_itself_and_no_text_becomes_markup() -> None:
    """
    No link, style sheet, picture or font is loaded; texts, ids, reasons and names are shown as they are.
    """
    evil = table(
        texts=[EVIL] * 6, normal=[EVIL] * 6, ids=[f"{EVIL}{n}" for n in range(6)], children=[EVIL] * 6, md5s=["a"] * 6
    )
    page = build_overview(overview_of(evil, skipped={EVIL: 1}, notes=[EVIL]), title=EVIL, players={f"{EVIL}0": "QUJD"})

    assert not re.search(r"https?:|url\(|@import|//[a-z]", page)
    assert "default-src 'none'" in page
    assert page.count("<script") == 1
    assert "alert(&quot;x&quot;)" in page
    assert set(re.findall(r'\b(?:src|href)="([^,]*),', page)) == {"data:audio/flac;base64"}


@pytest.mark.unit
def test_the_page_of_a_single_clip() -> None:
    """
    One clip of one child, without validation, still makes a page.
    """
    whole = table()
    one = {name: value[:1] for name, value in vars(whole).items() if name != "sides"}
    page = build_overview(overview_of(ClipTable(("train",), **one), skipped={}), title="one")

    assert "by 1 child<" in page
    assert "nan" not in page


@pytest.fixture(name="data")
def _data(corpus: Corpus, recipe_file: Path, tmp_path: Path) -> Path:
    """
    A prepared dataset with a clip that is missing, one with a tag and one whose manifest has another length.
    """

    def change(records: list[Record]) -> list[Record]:
        records[0]["audio_path"] = "audio/gone.flac"
        records[1]["orthographic_text"] = f"red {EVIL}"
        records[2]["audio_duration_sec"] = 9.0
        for record in records[2:]:
            record["orthographic_text"] = str(record["orthographic_text"]).split()[0]  # three words in 0.4 s are too many
        return records

    recipe = load_recipe(recipe_file, ["data.max_skipped=0.1"])
    changed = corpus.rewrite(change)
    build_dataset(recipe, [changed.manifest], changed.audio_dirs, tmp_path / "DATA")
    return tmp_path / "DATA"


@pytest.mark.integration
def test_a_prepared_dataset_and_its_command(data: Path, corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    """
    The figures are those of the corpus; --json goes to stdout alone, the page has players, and the terminal an overview.
    """
    found: Overview = read_overview(data)
    assert (found.total.utterances, found.total.children) == (26, 9)
    assert set(found.sampling_rates) == {8_000, 16_000, 22_050}
    assert found.channels == {1: 13, 2: 13}
    assert found.skipped == {"audio not found in any folder": 1}
    assert {key: count for key, count in found.suspected.items() if count} == {"duration": 1, "notation": 1}
    assert {one.utterance_id for one in found.suspects} == {"U_001", "U_002"}

    report = data.with_name("data.html")
    main_ok(["inspect", str(data), "--json", "--report", str(report), *corpus.audio_options()])
    printed = capsys.readouterr()
    assert json.loads(printed.out)["total"]["utterances"] == 26
    assert f"report: {report}" in printed.err
    page = report.read_text(encoding="utf-8")
    assert len(set(re.findall(r"base64,([^\"]+)", page))) == len(
        {one.utterance_id for one in [*found.suspects, *found.samples]}
    )
    main_ok(["inspect", str(data)])
    printed = capsys.readouterr()
    assert "Digits, brackets, tags" in printed.out
    assert "1 × audio not found" in printed.out
    assert "next: kidspeech inspect" in printed.err


def main_ok(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code in (None, 0)


@pytest.mark.integration
def test_mistakes_exit_with_2_and_a_sentence(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    A folder that is none, a damaged dataset, players without a page: words, no traceback, nothing on stdout.
    """

    def says(*arguments: object) -> str:
        with pytest.raises(SystemExit) as left:
            main(["inspect", *map(str, arguments)])
        printed = capsys.readouterr()
        assert (left.value.code, printed.out) == (2, "")
        return printed.err

    assert "is no prepared dataset (it has no prepare.json); make it with kidspeech prepare" in says(tmp_path / "nowhere")
    assert "--audio-dir is for the players of --report" in says(data, "--audio-dir", tmp_path)
    assert "no such audio folder" in says(data, "--audio-dir", tmp_path / "x", "--report", tmp_path / "x.html")
    arrow = next((data / "train").glob("*.arrow"))
    content = arrow.read_bytes()
    arrow.write_bytes(content[:1000])
    assert "the dataset is damaged: run kidspeech prepare again" in says(data)
    arrow.unlink()
    assert "the dataset is damaged: run kidspeech prepare again" in says(data)
    arrow.write_bytes(content)
    (data / "train.jsonl").write_text('{"utterance_id":\n', encoding="utf-8")
    assert "train.jsonl, line 1: broken JSON" in says(data)
    (data / "prepare.json").write_text("[", encoding="utf-8")
    assert "the dataset is damaged" in says(data)


@pytest.mark.integration
def test_a_dataset_that_lost_what_stands_beside_it(data: Path, tmp_path: Path) -> None:
    """
    Without its manifest lines it is refused, with empty ones only their lengths are unknown; it makes the same page each time.
    """
    before = read_overview(data)
    for name in ("a", "b"):
        write_overview(tmp_path / name, read_overview(data), title="data")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    (data / "train.jsonl").unlink()
    with pytest.raises(ManifestError, match=r"train\.jsonl"):
        read_overview(data)
    (data / "train.jsonl").touch()
    (data / "validation.jsonl").write_text("", encoding="utf-8")
    after = read_overview(data)
    assert after.seconds == before.seconds
    assert after.suspected["duration"] == 0
    (data / "dataset_dict.json").write_text('{"splits": []}', encoding="utf-8")
    with pytest.raises(DatasetError, match="no splits"):
        read_overview(data)
