"""
The small columns of a prepared dataset in memory, clip by clip; its features stay on disk, unread, and copies at another
speed are left out: they tell nothing new of the corpus.

This reads the Arrow files without `datasets`, whose import with torch's takes longer than the reading.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kidspeech.errors import DatasetError, ManifestError, ScoreError
from kidspeech.manifest import read_jsonl
from kidspeech.metrics import normalise
from kidspeech.progress import Progress, silent

TEXTS = ("utterance_id", "corpus", "child_id", "age_bucket", "orthographic_text", "md5")
FIGURES = ("seconds", "sampling_rate", "channels", "peak", "rms", "clipped")
TOLD_EVERY = 2000  # transcripts


@dataclass(frozen=True)
class ClipTable:
    """
    Every clip of a dataset, one entry a clip in each column.

    Attributes:
        sides: names of the splits, training first.
        side: which of them a clip belongs to, by number.
        ids, corpora, children, ages, texts, md5s: as in the dataset.
        seconds, sampling_rate (Hz), channels, peak, rms, clipped: measured, see kidspeech.arrow_folder.
        said_seconds: length according to the manifest, in seconds; nan where it says none.
        audio_paths: according to the manifest.
        normal: the transcript as the metric compares it.
        words: number of words in that.
    """

    sides: tuple[str, ...]
    side: NDArray[np.int8]
    ids: list[str]
    corpora: list[str]
    children: list[str]
    ages: list[str]
    texts: list[str]
    md5s: list[str]
    seconds: NDArray[np.float64]
    sampling_rate: NDArray[np.int32]
    channels: NDArray[np.int16]
    peak: NDArray[np.float32]
    rms: NDArray[np.float32]
    clipped: NDArray[np.float32]
    said_seconds: NDArray[np.float64]
    audio_paths: list[str]
    normal: list[str]
    words: NDArray[np.int32]

    @property
    def pace(self) -> NDArray[np.float64]:
        """
        Words per second of each clip.
        """
        return self.words / np.maximum(self.seconds, 1e-3)


def read_clips(folder: Path, progress: Progress = silent) -> ClipTable:
    """
    Read what is known of each clip of the prepared dataset *folder*, and normalise the transcripts.

    Raises:
        DatasetError: it is no prepared dataset, or damaged, or without clips.
        ManifestError: the manifest lines beside it can't be read.
    """
    sides = _sides(folder)
    tables = [_read_side(folder / name) for name in sides]
    table = pa.concat_tables(tables)
    if not len(table):
        msg = f"{folder} holds no clips; run kidspeech prepare again"
        raise DatasetError(msg)
    texts = {name: table.column(name).to_pylist() for name in TEXTS}
    said = {name: pair for side in sides for name, pair in _said(folder / f"{side}.jsonl")}
    of_manifest = [said.get(name, (float("nan"), "")) for name in texts["utterance_id"]]
    normal = _normalised(texts["orthographic_text"], progress)
    return ClipTable(
        sides=sides,
        side=np.repeat(np.arange(len(sides), dtype=np.int8), [len(each) for each in tables]),
        ids=texts["utterance_id"],
        corpora=texts["corpus"],
        children=texts["child_id"],
        ages=texts["age_bucket"],
        texts=texts["orthographic_text"],
        md5s=texts["md5"],
        said_seconds=np.array([seconds for seconds, _ in of_manifest]),
        audio_paths=[path for _, path in of_manifest],
        normal=normal,
        words=np.array([len(text.split()) for text in normal], np.int32),
        **{name: table.column(name).to_numpy() for name in FIGURES},
    )


def read_object(path: Path) -> dict[str, Any]:
    """
    Return the JSON object in *path*, a file of a prepared dataset.

    Raises:
        DatasetError: it is not there, or damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        msg = f"{path.parent} is no prepared dataset (it has no {path.name}); make it with kidspeech prepare"
        raise DatasetError(msg) from error
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    if not isinstance(found, dict):
        raise _damaged(path, "no JSON object")
    return found


def _sides(folder: Path) -> tuple[str, ...]:
    read_object(folder / "prepare.json")  # written last: a folder without it is unfinished
    sides = read_object(folder / "dataset_dict.json").get("splits")
    if not isinstance(sides, list) or not sides or not all(isinstance(name, str) for name in sides):
        raise _damaged(folder / "dataset_dict.json", "no splits")
    return tuple(sides)


def _read_side(folder: Path) -> pa.Table:
    files = read_object(folder / "state.json").get("_data_files", [])
    columns = [*TEXTS, *FIGURES]
    try:
        tables = [_recorded(_small(folder / file["filename"], [*columns, "speed"])) for file in files]
    except (OSError, pa.ArrowException, KeyError, TypeError) as error:
        raise _damaged(folder, error) from error
    return pa.concat_tables(tables) if tables else pa.table({name: [] for name in columns})


def _small(path: Path, columns: Sequence[str]) -> pa.Table:
    # mapped, not read: of the features, 56 kB a clip, only the headers of their batches are touched
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_stream(source).read_all().select(columns)


def _recorded(table: pa.Table) -> pa.Table:
    return table.filter(table.column("speed").to_numpy() == 1).drop_columns(["speed"])


def _damaged(path: Path, error: object) -> DatasetError:
    return DatasetError(f"can't read {path} ({error}); the dataset is damaged: run kidspeech prepare again")


def _said(path: Path) -> Iterator[tuple[str, tuple[float, str]]]:
    problems: list[str] = []
    for _, record in read_jsonl(path, problems):
        seconds = record.get("audio_duration_sec")
        yield str(record.get("utterance_id")), (float("nan") if seconds is None else seconds, record.get("audio_path", ""))
    if problems:
        msg = f"{problems[0]}; run kidspeech prepare again"
        raise ManifestError(msg)


def _normalised(texts: Sequence[str], progress: Progress) -> list[str]:
    found: dict[str, str] = {}  # read prompts come again and again, and the normaliser takes 0.1 ms
    distinct = dict.fromkeys(texts)
    for number, text in enumerate(distinct):
        if number % TOLD_EVERY == TOLD_EVERY - 1:
            progress("normalising transcripts", number, len(distinct))
        found[text] = _normal(text)
    return [found[text] for text in texts]


def _normal(text: str) -> str:
    try:
        return normalise(text)
    except ScoreError:  # a number too long to read; the page points at its digits
        return text.lower()
