"""
The prepared dataset on disk: a folder that plain `datasets.load_from_disk` opens as a DatasetDict.

COLUMNS is the one definition of its columns; the dataset's card shows it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kidspeech.manifest import Utterance
from kidspeech.shards import Row, column, list_array


@dataclass(frozen=True)
class Column:
    """
    A column: its type, as of Arrow, its unit, and what it holds.
    """

    kind: str
    unit: str
    about: str


TEXT = ("utterance_id", "corpus", "child_id", "session_id", "age_bucket", "orthographic_text")
MEASURED = ("seconds", "sampling_rate", "channels", "peak", "rms", "clipped", "md5", "n_frames")
COLUMNS = {
    "utterance_id": Column("string", "", "of the manifest, unique; of a copy at another speed it ends in `@` and the speed"),
    "corpus": Column("string", "", "its name in the recipe or the manifest; empty where there is one without a name"),
    "child_id": Column("string", "", "of the manifest; a child is on one side of the split only"),
    "session_id": Column("string", "", "of the manifest"),
    "age_bucket": Column("string", "years", "of the manifest: 3-4, 5-7, 8-11, 12+ or unknown"),
    "orthographic_text": Column("string", "", "the transcript as the manifest has it"),
    "seconds": Column("float64", "s", "length of the audio, measured; of a copy as it is played"),
    "sampling_rate": Column("int32", "Hz", "of the file; the features are of 16 kHz"),
    "channels": Column("int16", "", "of the file; the features are of their mean"),
    "peak": Column("float32", "full scale", "largest absolute sample"),
    "rms": Column("float32", "full scale", "root mean square of the samples"),
    "clipped": Column("float32", "share", "of the samples, at full scale"),
    "md5": Column("string", "", "of the file, as hex"),
    "n_frames": Column("int32", "10 ms", "frames of the features"),
    "speed": Column("float32", "", "1, or of a copy how many times as fast its clip is played"),
    "input_features": Column(
        "list<float16>",
        "log10 of power, scaled",
        "log-mel, unpadded and row-major: `np.asarray(row).reshape(-1, n_frames)` is (n_mels, n_frames)",
    ),
    "labels": Column("list<int32>", "token id", "prompt, text and end of text, without the start of transcript"),
}


def _element(kind: str) -> str | None:
    return kind.removeprefix("list<").removesuffix(">") if kind.startswith("list<") else None


def _feature(kind: str) -> dict[str, Any]:
    element = _element(kind)
    return {"feature": _feature(element), "_type": "List"} if element else {"dtype": kind, "_type": "Value"}


def _arrow(kind: str) -> pa.DataType:
    element = _element(kind)
    return pa.list_(_arrow(element)) if element else pa.type_for_alias(kind)


# what `datasets` writes beside its columns, without importing it: it takes a second and brings pandas along
FEATURES = {name: _feature(column.kind) for name, column in COLUMNS.items()}
SCHEMA = pa.schema(
    {name: _arrow(column.kind) for name, column in COLUMNS.items()},
    metadata={"huggingface": json.dumps({"info": {"features": FEATURES}})},
)
BATCH = 256  # rows written at once: 14 MB of features
FILE_ROWS = 8192  # rows in one .arrow file: 0.5 GB of features


@dataclass(frozen=True, slots=True)
class Example:
    """
    One utterance with its features and labels.
    """

    utterance: Utterance
    row: Row
    labels: list[int]
    speed: float = 1.0


def write_splits(folder: Path, splits: Mapping[str, Sequence[Example]]) -> Iterator[int]:
    """
    Write one sub-folder a split into the empty *folder*, yielding the number of rows after each batch.

    The same examples give the same bytes, whatever shards their features came from.
    """
    for name, examples in splits.items():
        yield from _write_split(folder / name, name, examples)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}), encoding="utf-8")


def _write_split(folder: Path, name: str, examples: Sequence[Example]) -> Iterator[int]:
    folder.mkdir(parents=True)
    parts = [examples[start : start + FILE_ROWS] for start in range(0, len(examples), FILE_ROWS)]
    files = [f"data-{number:05d}-of-{len(parts):05d}.arrow" for number in range(len(parts))]
    for file, part in zip(files, parts, strict=True):
        yield from _write_file(folder / file, part)
    info = {"citation": "", "description": "", "features": FEATURES, "homepage": "", "license": ""}
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=2), encoding="utf-8")
    # what load_from_disk reads besides; the fingerprint must not depend on when and where this was written
    ids = "\n".join(f"{example.utterance.utterance_id} {example.row.small['md5']}" for example in examples)
    state: dict[str, Any] = {
        "_data_files": [{"filename": file} for file in files],
        "_fingerprint": hashlib.sha256(ids.encode()).hexdigest()[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": name,
    }
    (folder / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")


def _write_file(path: Path, examples: Sequence[Example]) -> Iterator[int]:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as stream:
        for start in range(0, len(examples), BATCH):
            batch = examples[start : start + BATCH]
            stream.write_batch(_record_batch(batch))
            yield len(batch)


def _record_batch(examples: Sequence[Example]) -> pa.RecordBatch:
    columns = [[getattr(example.utterance, name) for example in examples] for name in TEXT]
    columns += [[example.row.small[name] for example in examples] for name in MEASURED]
    columns.append([example.speed for example in examples])
    arrays = [column(values, field.type) for values, field in zip(columns, SCHEMA, strict=False)]
    arrays.append(list_array([example.row.features for example in examples], pa.float16()))
    arrays.append(list_array([np.array(example.labels, np.int32) for example in examples], pa.int32()))
    return pa.record_batch(arrays, schema=SCHEMA)
