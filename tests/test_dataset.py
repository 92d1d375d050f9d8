"""
Prepare: nothing lost, nothing hidden, no audio read twice, nothing half-written taken for whole.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import soundfile
from transformers import WhisperFeatureExtractor

from kidspeech import reading
from kidspeech.config import Recipe, load_recipe
from kidspeech.dataset import Prepared, build_dataset, load_dataset
from kidspeech.errors import BusyError, DatasetError, ManifestError, SplitError, StorageError
from kidspeech.features import read_audio
from kidspeech.folders import locked
from kidspeech.models import create_model

from corpora import END, NO_TIMESTAMPS, Corpus, Record, make_corpus, tone

pytestmark = pytest.mark.integration


@pytest.fixture(name="recipe")
def _recipe(recipe_file: Path) -> Recipe:
    return load_recipe(recipe_file, ["data.max_skipped=0.3"])


def prepare(recipe: Recipe, corpus: Corpus, out: Path) -> Prepared:
    return build_dataset(recipe, [corpus.manifest], corpus.audio_dirs, out)


def skipped(out: Path) -> dict[str, str]:
    lines = (out / "skipped.jsonl").read_text(encoding="utf-8").splitlines()
    return {entry["utterance_id"]: entry["reason"] for entry in map(json.loads, lines)}


def test_plain_datasets_opens_it_and_every_utterance_is_on_one_side(recipe: Recipe, corpus: Corpus, tmp_path: Path) -> None:
    """
    load_from_disk gives a DatasetDict whose sides share no child and miss no utterance.
    """
    prepared = prepare(recipe, corpus, tmp_path / "DATA")
    sides = datasets.load_from_disk(str(tmp_path / "DATA"))

    assert set(sides) == {"train", "validation"}
    assert sorted(sides["train"]["utterance_id"][:] + sides["validation"]["utterance_id"][:]) == [
        record["utterance_id"] for record in corpus.records
    ]
    assert not set(sides["train"]["child_id"]) & set(sides["validation"]["child_id"])
    assert prepared.sides["validation"] == {"utterances": 9, "hours": pytest.approx(0.0017, abs=2e-4), "children": 3}
    assert prepared.shares["all"] == pytest.approx(1 / 3)


def test_a_row_is_whispers_features_and_its_prompted_labels(recipe: Recipe, corpus: Corpus, tmp_path: Path) -> None:
    """
    Features equal the extractor's within float16, labels are prompt, text and end, without start of transcript.
    """
    prepare(recipe, corpus, tmp_path / "DATA")
    row = datasets.load_from_disk(str(tmp_path / "DATA"))["train"][0]
    record = next(record for record in corpus.records if record["utterance_id"] == row["utterance_id"])
    path = next(path for folder in corpus.audio_dirs for path in folder.glob(f"{row['utterance_id']}.flac"))
    full = WhisperFeatureExtractor()(read_audio(path.read_bytes()).samples, sampling_rate=16_000).input_features[0]
    features = np.asarray(row["input_features"]).reshape(-1, row["n_frames"])
    tokenizer = create_model(recipe.model).processor.tokenizer

    assert np.abs(features - full[:, : row["n_frames"]]).max() <= 5e-4
    assert row["labels"][0] == NO_TIMESTAMPS
    assert row["labels"][-1] == END
    assert tokenizer.decode(row["labels"], skip_special_tokens=True) == f" {record['orthographic_text']}"


def test_a_second_run_and_another_split_open_no_audio(
    recipe: Recipe, recipe_file: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Features depend on nothing but the audio: with all files unreadable the second run, a new split and new labels succeed.
    """
    prepare(recipe, corpus, tmp_path / "DATA")
    first = {path: path.read_bytes() for path in (tmp_path / "DATA").rglob("*") if path.is_file()}
    monkeypatch.setattr(reading, "read_audio", lambda *_, **__: pytest.fail("audio was opened"))
    prepare(recipe, corpus, tmp_path / "DATA")
    prepare(load_recipe(recipe_file, ["data.seed=7", "data.min_seconds=0.2"]), corpus, tmp_path / "OTHER")
    prepare(recipe, corpus, tmp_path / "AGAIN")

    assert {path: path.read_bytes() for path in (tmp_path / "DATA").rglob("*") if path.is_file()} == first
    again = {tmp_path / "DATA" / path.relative_to(tmp_path / "AGAIN"): path for path in (tmp_path / "AGAIN").rglob("*")}
    assert all(first[there] == path.read_bytes() for there, path in again.items() if path.is_file())


def test_a_new_process_opens_no_audio_either(recipe_file: Path, corpus: Corpus, tmp_path: Path) -> None:
    """
    The cache is keyed by content, not by anything of the process that filled it.
    """
    build_dataset(load_recipe(recipe_file), [corpus.manifest], corpus.audio_dirs, tmp_path / "DATA")
    program = (
        "import sys, pathlib; from kidspeech import reading; from kidspeech.config import load_recipe;"
        "from kidspeech.dataset import build_dataset; reading.read_audio = None;"
        "recipe, manifest, out, *folders = map(pathlib.Path, sys.argv[1:]);"
        "build_dataset(load_recipe(recipe, ['data.seed=3']), [manifest], folders, out)"
    )
    arguments = map(str, [recipe_file, corpus.manifest, tmp_path / "TWO", *corpus.audio_dirs])

    subprocess.run([sys.executable, "-c", program, *arguments], check=True)
    assert (tmp_path / "TWO" / "prepare.json").is_file()


def test_a_changed_file_is_read_anew(recipe: Recipe, corpus: Corpus, tmp_path: Path) -> None:
    """
    A file that was replaced since is not answered from the cache: its md5 no longer fits the manifest.
    """
    prepare(recipe, corpus, tmp_path / "DATA")
    tone(corpus.audio_dirs[0] / "U_000.flac", seconds=1.0, pitch=999)
    prepare(recipe, corpus, tmp_path / "DATA")

    assert skipped(tmp_path / "DATA")["U_000"].startswith(("size mismatch", "md5 mismatch"))


def _set(index: int, **fields: Any) -> Callable[[list[Record]], list[Record]]:
    def change(records: list[Record]) -> list[Record]:
        records[index] |= fields
        return records

    return change


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "audio not found": lambda path: path.unlink(),
    "audio the file is empty": lambda path: path.write_bytes(b""),
    "audio not readable as audio": _truncated,
    "audio 31.0 s long": lambda path: tone(path, seconds=31, pitch=100),
    "size mismatch": lambda path: tone(path, seconds=2, pitch=100),
    "too short": lambda path: tone(path, seconds=0.05, pitch=100),
    "audio can't be read": lambda path: (path.unlink(), path.symlink_to(path.name)),
}


@pytest.mark.parametrize("reason", DAMAGE)
def test_a_clip_that_can_not_be_used_is_listed_and_the_rest_is_prepared(
    reason: str, recipe: Recipe, corpus: Corpus, tmp_path: Path
) -> None:
    """
    One damaged file costs one utterance, named with its reason, and counted.
    """
    DAMAGE[reason](corpus.audio_dirs[0] / "U_000.flac")
    unverified = recipe.model_copy(update={"data": recipe.data.model_copy(update={"verify": reason == "size mismatch"})})
    prepared = prepare(unverified, corpus, tmp_path / "DATA")
    (name, told), *others = skipped(tmp_path / "DATA").items()

    assert (name, others) == ("U_000", [])
    assert told.startswith(reason)
    assert prepared.sides["train"]["utterances"] + prepared.sides["validation"]["utterances"] == 26
    assert sum(prepared.skipped.values()) == 1


@pytest.mark.parametrize(
    ("field", "reason"),
    [({"orthographic_text": "  "}, "empty text"), ({"orthographic_text": "red " * 500}, "text too long: "),
     ({"md5_hash": "0" * 32}, "md5 mismatch")],
)  # fmt: skip
def test_a_text_that_can_not_be_used_is_listed(
    field: Record, reason: str, recipe: Recipe, corpus: Corpus, tmp_path: Path
) -> None:
    """
    Empty texts, texts beyond the model's 448 positions and wrong checksums are skipped, never cut or guessed.
    """
    prepare(recipe, corpus.rewrite(_set(4, **field)), tmp_path / "DATA")

    assert skipped(tmp_path / "DATA")["U_004"].startswith(reason)


def test_zero_samples_are_listed(recipe: Recipe, corpus: Corpus, tmp_path: Path) -> None:
    """
    A whole file that holds nothing is not a clip of silence.
    """
    path = corpus.audio_dirs[0] / "U_000.flac"
    soundfile.write(path.with_suffix(".wav"), np.zeros(0), 16_000)
    path.with_suffix(".wav").rename(path)
    changed = corpus.rewrite(_set(0, md5_hash=None, filesize_bytes=None))
    prepare(recipe, changed, tmp_path / "DATA")

    assert skipped(tmp_path / "DATA")["U_000"] == "audio it has no samples"


def test_too_many_skipped_stop_the_run_and_are_still_listed(recipe: Recipe, corpus: Corpus, tmp_path: Path) -> None:
    """
    With ten of 27 files gone nothing is prepared, and a file beside says which and why.
    """
    for number in range(10):
        (corpus.audio_dirs[number % 2] / f"U_{number:03d}.flac").unlink()

    with pytest.raises(DatasetError, match=r"10 of 27 utterances can't be used \(10 audio not found.*data\.max_skipped"):
        prepare(recipe, corpus, tmp_path / "DATA")
    assert not (tmp_path / "DATA").exists()
    assert len((tmp_path / "DATA.skipped.jsonl").read_text(encoding="utf-8").splitlines()) == 10


def test_wrong_folders_are_one_error_not_a_list(recipe: Recipe, corpus: Corpus, tmp_path: Path) -> None:
    """
    Where no file is found at all the folders are wrong, and that is what is said.
    """
    (tmp_path / "empty").mkdir()

    with pytest.raises(ManifestError, match="none of the 27 audio files lies in"):
        build_dataset(recipe, [corpus.manifest], [tmp_path / "empty"], tmp_path / "DATA")


def test_one_child_only_is_refused(recipe: Recipe, corpus: Corpus, tmp_path: Path) -> None:
    """
    Nothing can be said of unseen children with one child.
    """
    alone = corpus.rewrite(lambda records: [record | {"child_id": "C"} for record in records])

    with pytest.raises(SplitError, match="two children"):
        prepare(recipe, alone, tmp_path / "DATA")


def test_a_bucket_with_one_child_is_prepared_and_told(recipe: Recipe, corpus: Corpus, tmp_path: Path) -> None:
    """
    The split goes on, and a note says that this age group has no measured WER, or no training.
    """
    lonely = corpus.rewrite(lambda records: [*records[:-3], *(record | {"age_bucket": "12+"} for record in records[-3:])])

    assert any("12+ has one child only" in note for note in prepare(recipe, lonely, tmp_path / "DATA").notes)


def test_a_list_of_validation_ids_is_followed(recipe_file: Path, corpus: Corpus, tmp_path: Path) -> None:
    """
    The named utterances validate, and their children's other utterances are dropped.
    """
    (tmp_path / "ids.txt").write_text("U_000\nU_004\n\n", encoding="utf-8")
    prepared = prepare(load_recipe(recipe_file, [f"data.val_ids={tmp_path / 'ids.txt'}"]), corpus, tmp_path / "DATA")
    sides = datasets.load_from_disk(str(tmp_path / "DATA"))

    assert sides["validation"]["utterance_id"][:] == ["U_000", "U_004"]
    assert prepared.sides["train"]["utterances"] == 27 - 6


@pytest.mark.parametrize(("content", "word"), [(None, "can't read"), ("U_999\n", "1 ids stand in no manifest")])
def test_a_wrong_list_of_validation_ids_is_refused(
    content: str | None, word: str, recipe_file: Path, corpus: Corpus, tmp_path: Path
) -> None:
    """
    A missing list and unknown ids are errors, not an empty validation side.
    """
    if content:
        (tmp_path / "ids.txt").write_text(content, encoding="utf-8")

    with pytest.raises(SplitError, match=word):
        prepare(load_recipe(recipe_file, [f"data.val_ids={tmp_path / 'ids.txt'}"]), corpus, tmp_path / "DATA")


def test_a_half_written_dataset_is_never_picked_up(recipe: Recipe, corpus: Corpus, tmp_path: Path) -> None:
    """
    Arrow files without prepare.json are no dataset; prepare does not write over what it does not know.
    """
    prepare(recipe, corpus, tmp_path / "DATA")
    (tmp_path / "DATA" / "prepare.json").unlink()

    with pytest.raises(DatasetError, match="no prepared dataset"):
        load_dataset(tmp_path / "DATA", create_model(recipe.model))
    with pytest.raises(DatasetError, match="exists and is no prepared dataset"):
        prepare(recipe, corpus, tmp_path / "DATA")


def test_half_written_shards_are_never_picked_up(recipe: Recipe, corpus: Corpus, cache: Path, tmp_path: Path) -> None:
    """
    What a killed process left beside its shard is swept away, and the features are computed.
    """
    prepare(recipe, corpus, tmp_path / "DATA")
    whole = sorted(path.read_bytes() for path in (tmp_path / "DATA").rglob("*.arrow"))
    (shard,) = cache.rglob("*.arrow")
    shard.with_suffix(".99.tmp").write_bytes(shard.read_bytes()[:1000])
    shard.unlink()
    shutil.rmtree(tmp_path / "DATA")
    prepare(recipe, corpus, tmp_path / "DATA")

    assert sorted(path.read_bytes() for path in (tmp_path / "DATA").rglob("*.arrow")) == whole
    assert not list(cache.rglob("*.tmp"))


def test_a_dataset_of_another_model_is_refused(recipe: Recipe, corpus: Corpus, tmp_path: Path) -> None:
    """
    Features with other mel bands must not reach a model silently.
    """
    prepare(recipe, corpus, tmp_path / "DATA")
    path = tmp_path / "DATA" / "prepare.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"n_mels": 80', '"n_mels": 128'), encoding="utf-8")

    with pytest.raises(DatasetError, match="features made for another model"):
        load_dataset(tmp_path / "DATA", create_model(recipe.model))


def test_a_second_prepare_at_once_is_refused_by_name(recipe: Recipe, corpus: Corpus, tmp_path: Path) -> None:
    """
    Two processes never write one dataset.
    """
    with locked(tmp_path / ".DATA.lock", "x"), pytest.raises(BusyError, match="DATA"):
        prepare(recipe, corpus, tmp_path / "DATA")


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="mounts a small file system, which takes root")
def test_a_full_disk_leaves_the_old_dataset_and_nothing_half_written(recipe: Recipe, corpus: Corpus, tmp_path: Path) -> None:
    """
    On a disk of a third of a megabyte: a StorageError that names the place, the old dataset whole, no remains beside it.
    """
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=360k", "tmpfs", str(disk)], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount a file system here")
    try:
        small = corpus.rewrite(lambda records: [record for record in records if record["child_id"] in ("C_0", "C_1", "C_3")])
        prepare(recipe, small, disk / "DATA")
        before = {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()}
        with pytest.raises(StorageError, match="No space left"):
            prepare(recipe, corpus, disk / "DATA")
        assert {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()} == before
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_workers_make_the_same_bytes_as_one_process(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Spawned workers, several shards: the dataset is the one that a single process makes.
    """
    corpus = make_corpus(tmp_path / "corpus", children=30)
    found = []
    for workers, shard in ((1, 256), (2, 40)):
        monkeypatch.setenv("KIDSPEECH_CACHE", str(tmp_path / f"cache{workers}"))
        monkeypatch.setattr("kidspeech.workers.SHARD", shard)
        out = tmp_path / f"DATA{workers}"
        prepare(load_recipe(recipe_file, [f"data.workers={workers}"]), corpus, out)
        found.append({path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()})

    assert len(list((tmp_path / "cache2").rglob("*.arrow"))) == 3
    assert found[0] == found[1]
