"""
Choosing what is trained on: limits and a teacher take clips from training only, copies stay with their child, all is told.
"""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import soxr

from kidspeech import reading
from kidspeech.arrow_folder import Example
from kidspeech.config import Choose, Recipe, load_recipe
from kidspeech.dataset import Prepared, build_dataset
from kidspeech.errors import DatasetError, RecipeError
from kidspeech.features import read_audio
from kidspeech.manifest import Utterance
from kidspeech.models import create_model
from kidspeech.overview import read_overview
from kidspeech.selection import choose
from kidspeech.shards import Row

from corpora import Corpus, tone


def example(name: str, text: str, *, seconds: float = 2.0, age: str = "5-7") -> Example:
    """
    Return an example of which nothing but text, length and age matters.
    """
    return Example(
        Utterance(name, "", "C", age_bucket=age, orthographic_text=text),
        Row(Path(), 0, {"seconds": seconds, "path": name}),
        [],
    )


def settings(**fields: object) -> Choose:
    """
    Return the section as a recipe would give it.
    """
    return Choose.model_validate(fields)


def left_out(examples: list[Example], chosen: Choose) -> dict[str, str]:
    """
    Return the kind of reason of each that is left out.
    """
    return {entry.utterance_id: entry.reason.partition(":")[0] for entry in choose(examples, chosen)[1]}


@pytest.mark.unit
def test_each_limit_takes_what_is_beyond_it_and_names_itself() -> None:
    """
    Lengths and paces at a limit stay, those beyond go, with the setting that took them.
    """
    clips = [
        example("ok", "a dog ran off"),
        example("edge", "a dog", seconds=1.0),
        example("short", "dog", seconds=0.9),
        example("long", "a dog ran off", seconds=4.1),
        example("slow", "dog", seconds=4.0),
        example("fast", "a dog ran off to the sea"),
        example("silent", "[noise]"),
    ]
    limits = settings(min_seconds=1.0, max_seconds=4.0, min_words_per_second=0.5, max_words_per_second=3.0)

    assert left_out(clips, limits) == {
        "short": "not chosen, under choose.min_seconds",
        "long": "not chosen, over choose.max_seconds",
        "slow": "not chosen, under choose.min_words_per_second",
        "fast": "not chosen, over choose.max_words_per_second",
        "silent": "not chosen, under choose.min_words_per_second",
    }
    assert left_out(clips, settings()) == {}


@pytest.fixture(name="teacher")
def _teacher(tmp_path: Path) -> str:
    """
    Predictions: right, wrong in one of two words by one letter, and wrong throughout.
    """
    said = {"right": "the Cat.", "near": "the cap", "wrong": "no bird", "young": "no bird"}
    path = tmp_path / "teacher.jsonl"
    lines = [{"utterance_id": name, "orthographic_text": text} for name, text in said.items()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("limits", "gone"),
    [
        ({"max_wer": 0.5}, {"wrong", "young"}),
        ({"max_wer": 0.4}, {"near", "wrong", "young"}),
        ({"max_wer": {"default": 0.4, "3-4": 1.0}}, {"near", "wrong"}),
        ({"max_wer": {"3-4": 0.4}}, {"young"}),
        ({"max_cer": 0.2}, {"wrong", "young"}),
        ({"max_wer": 0.4, "max_cer": 0.2, "join": "or"}, {"near", "wrong", "young"}),
        ({"max_wer": 0.4, "max_cer": 0.2, "join": "and"}, {"wrong", "young"}),
    ],
)
def test_a_teacher_takes_what_it_hears_otherwise(limits: dict[str, object], gone: set[str], teacher: str) -> None:
    """
    By word errors, character errors, either or both, per age group with a default; texts are normalised as for the WER.
    """
    clips = [example(name, "the cat") for name in ("right", "near", "wrong")] + [example("young", "the cat", age="3-4")]

    assert set(left_out(clips, settings(teacher=teacher, **limits))) == gone


@pytest.mark.unit
def test_a_teacher_that_has_not_heard_a_clip_is_refused(teacher: str) -> None:
    """
    A clip without a prediction is neither good nor bad.
    """
    with pytest.raises(DatasetError, match=r"no prediction for 1 training utterances \(new"):
        choose([example("new", "the cat"), example("right", "the cat")], settings(teacher=teacher, max_wer=1))


@pytest.mark.unit
def test_a_choice_of_nothing_is_refused() -> None:
    """
    An empty training side is a mistake in the recipe, and is told before training.
    """
    with pytest.raises(DatasetError, match="leaves none of 1 clips"):
        choose([example("a", "the cat")], settings(min_seconds=9))


@pytest.mark.unit
def test_contradictions_in_the_section_are_told_together(recipe_file: Path) -> None:
    """
    Limits the wrong way round, a limit without a teacher, copies at the clip's own speed, an unknown age group.
    """
    wrong = [
        "choose.min_seconds=9",
        "choose.max_seconds=3",
        "choose.max_wer=0.5",
        "choose.max_cer={2-3: 1}",
        "choose.speeds=[1]",
    ]

    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_file, wrong)
    for told in (
        "choose.max_seconds: must be above",
        "choose.max_wer: needs",
        "choose.max_cer.2-3",
        "choose.speeds: must differ",
    ):
        assert told in str(caught.value)
    with pytest.raises(RecipeError, match="choose: teacher does nothing"):
        load_recipe(recipe_file, ["choose.teacher=x.jsonl"])


def prepare(recipe_file: Path, corpus: Corpus, out: Path, *overrides: str) -> Prepared:
    recipe: Recipe = load_recipe(recipe_file, overrides)
    return build_dataset(recipe, [corpus.manifest], corpus.audio_dirs, out)


@pytest.mark.integration
def test_validation_is_the_same_whatever_is_chosen(recipe_file: Path, corpus: Corpus, tmp_path: Path) -> None:
    """
    The same children validate on the same clips, of all lengths; what training lost is counted and listed.
    """
    plain = prepare(recipe_file, corpus, tmp_path / "PLAIN")
    chosen = prepare(recipe_file, corpus, tmp_path / "CHOSEN", "choose.max_seconds=0.75", "choose.speeds=[0.9]")
    before, after = (datasets.load_from_disk(str(tmp_path / name)) for name in ("PLAIN", "CHOSEN"))
    listed = [json.loads(line) for line in (tmp_path / "CHOSEN" / "skipped.jsonl").read_text(encoding="utf-8").splitlines()]
    lost = [row["utterance_id"] for row in before["train"] if row["seconds"] > 0.75]

    assert before["validation"].to_dict() == after["validation"].to_dict()
    assert max(after["validation"]["seconds"][:]) > 0.75
    assert {entry["utterance_id"] for entry in listed} == set(lost)
    assert chosen.skipped == plain.skipped | {"not chosen, over choose.max_seconds": len(lost)}


@pytest.mark.integration
def test_copies_stay_with_their_child_and_are_the_clip_at_another_speed(
    recipe_file: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Each training clip and no other has its copies, with its child, labels, own id, length and features; a slow copy that is
    longer than the limit is listed; the second time they come from the cache, and inspect counts recordings only.
    """
    tone(corpus.audio_dirs[0] / "U_000.flac", seconds=0.95, pitch=300)
    unverified = ("data.verify=false", "data.max_seconds=1.1", "choose.speeds=[0.8, 1.25]", "data.seed=1")
    prepared = prepare(recipe_file, corpus, tmp_path / "DATA", *unverified)
    sides = datasets.load_from_disk(str(tmp_path / "DATA"))
    train = {row["utterance_id"]: row for row in sides["train"]}
    originals = [row for name, row in train.items() if "@" not in name]

    assert set(sides["validation"]["speed"]) == {1.0}
    skipped = [json.loads(line) for line in (tmp_path / "DATA" / "skipped.jsonl").read_text(encoding="utf-8").splitlines()]
    too_long = {entry["utterance_id"] for entry in skipped if entry["reason"].startswith("copy too long: ")}
    assert too_long == {f"{row['utterance_id']}@0.8" for row in originals if row["seconds"] / 0.8 > 1.1}
    assert too_long
    assert len(train) == 3 * len(originals) - len(too_long) == prepared.sides["train"]["utterances"]
    log_mel = create_model(load_recipe(recipe_file).model).featurizer
    for row in originals:
        copy = train[f"{row['utterance_id']}@1.25"]
        assert {name: copy[name] for name in ("child_id", "age_bucket", "labels", "orthographic_text", "md5")} == {
            name: row[name] for name in ("child_id", "age_bucket", "labels", "orthographic_text", "md5")
        }
        assert copy["seconds"] == pytest.approx(row["seconds"] / 1.25)
        path = next(path for folder in corpus.audio_dirs for path in folder.glob(f"{row['utterance_id']}.flac"))
        faster = soxr.resample(read_audio(path.read_bytes()).samples, 20_000, 16_000)
        expected = log_mel(faster)
        assert copy["n_frames"] == expected.shape[1]
        np.testing.assert_array_equal(np.float16(copy["input_features"]), np.float16(expected).ravel())

    monkeypatch.setattr(reading, "read_audio", lambda *_, **__: pytest.fail("audio was opened"))
    prepare(recipe_file, corpus, tmp_path / "AGAIN", *unverified)
    told = read_overview(tmp_path / "DATA")
    lines = (tmp_path / "DATA" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert told.total.utterances == 27
    assert len(lines) == len(originals)
    assert any("copies" in note for note in told.notes)
