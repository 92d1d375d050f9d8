"""
The prepared dataset on disk: a folder that plain `datasets.load_from_disk` opens as a DatasetDict.

Columns of every split:

=================== ============= ==================================================================================
utterance_id        string        of the manifest, as are child_id, session_id, age_bucket and orthographic_text
corpus              string        its name in the recipe or the manifest; "" where there is but one without a name
seconds             float64       length of the audio, measured
sampling_rate       int32         of the file, in Hz; the features are of 16 kHz
channels            int16         of the file; the features are of their mean
peak, rms           float32       largest absolute sample and root mean square, 1.0 is full scale
clipped             float32       share of the samples at full scale
md5                 string        of the file, as hex
n_frames            int32         frames of 10 ms
speed               float32       1, or of a copy how many times as fast its clip is played; the columns above but seconds
                                  and n_frames are then the file's, and utterance_id ends in "@" and the speed
input_features      list<float16> log-mel, row-major: `np.asarray(row).reshape(-1, n_frames)` is (n_mels, n_frames)
labels              list<int32>   token ids without start of transcript: prompt, text, end of text
=================== ============= ==================================================================================
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
from datasets import DatasetInfo, Features, List, Value

from kidspeech.manifest import Utterance
from kidspeech.shards import Row, list_array

TEXT = ("utterance_id", "corpus", "child_id", "session_id", "age_bucket", "orthographic_text")
MEASURED = {
    "seconds": "float64",
    "sampling_rate": "int32",
    "channels": "int16",
    "peak": "float32",
    "rms": "float32",
    "clipped": "float32",
    "md5": "string",
    "n_frames": "int32",
}
SPEED = "speed"
COLUMNS = Features(
    {name: Value("string") for name in TEXT}
    | {name: Value(kind) for name, kind in MEASURED.items()}
    | {SPEED: Value("float32")}
    | {"input_features": List(Value("float16")), "labels": List(Value("int32"))}
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
    DatasetInfo(features=COLUMNS).write_to_directory(str(folder))
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
    schema = COLUMNS.arrow_schema
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as stream:
        for start in range(0, len(examples), BATCH):
            batch = examples[start : start + BATCH]
            stream.write_batch(_record_batch(batch, schema))
            yield len(batch)


def _record_batch(examples: Sequence[Example], schema: pa.Schema) -> pa.RecordBatch:
    columns = [[getattr(example.utterance, name) for example in examples] for name in TEXT]
    columns += [[example.row.small[name] for example in examples] for name in MEASURED]
    columns.append([example.speed for example in examples])
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=False)]
    arrays.append(list_array([example.row.features for example in examples]))
    labels = [example.labels for example in examples]
    offsets = np.concatenate(([0], np.cumsum([len(ids) for ids in labels]))).astype(np.int32)
    arrays.append(pa.ListArray.from_arrays(offsets, pa.array(np.concatenate(labels), pa.int32())))
    return pa.record_batch(arrays, schema=schema)
