"""
Shards: the files of the feature cache, and the row that one clip becomes.

A shard is an Arrow stream of up to SHARD rows, written beside and renamed, so that one which is there is whole. It is its
own index: its small columns say which file (path, size, time of change) and which content (md5) each row belongs to.
Nothing in a row depends on a recipe, a split or a tokenizer.

::

    path, size (bytes), mtime_ns   the file as it was when it was read
    md5                            of its bytes, as hex
    problem                        why it can't be used, or null; then the columns below are null
    seconds, sampling_rate (Hz), channels, peak, rms, clipped      see kidspeech.features.Audio
    n_frames                       frames of 10 ms
    input_features                 float16, row-major (n_mels, n_frames), flat: lists of lists cost five times the memory
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kidspeech.clips import Clip
from kidspeech.errors import writing

SHARD = 256  # clips: 14 MB of features, some seconds of work to lose at most
SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "size": pa.int64(),
        "mtime_ns": pa.int64(),
        "md5": pa.string(),
        "problem": pa.string(),
        "seconds": pa.float64(),
        "sampling_rate": pa.int32(),
        "channels": pa.int16(),
        "peak": pa.float32(),
        "rms": pa.float32(),
        "clipped": pa.float32(),
        "n_frames": pa.int32(),
        "input_features": pa.list_(pa.float16()),
    }
)


@dataclass(frozen=True, slots=True)
class Row:
    """
    Where a clip's row lies: which shard, which row of it, and its small columns.
    """

    shard: Path
    index: int
    small: dict[str, Any]

    @property
    def features(self) -> NDArray[np.float16]:
        """
        The flat features, shape (rows * n_frames,), read from disk on use.
        """
        offsets, values = _features(self.shard)
        return values[offsets[self.index] : offsets[self.index + 1]]


def write_shard(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """
    Write *rows* as one shard, whole or not at all.

    Raises:
        StorageError: the disk is full or can't be written.
    """
    arrays = [column([row.get(field.name) for row in rows], field.type) for field in list(SCHEMA)[:-1]]
    features = list_array([row.get("input_features") for row in rows], pa.float16())
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    with writing(path):
        try:
            with pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as stream:
                stream.write_batch(pa.record_batch([*arrays, features], schema=SCHEMA))
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)  # on a full disk it is what fills it
            raise


def column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """
    Return an Arrow column of texts or numbers; None becomes null.

    As pa.array does, without the pandas that pa.array imports: a third of a second in every process.
    """
    if kind == pa.string():
        return _ragged(
            [None if value is None else np.frombuffer(value.encode(), np.uint8) for value in values], kind, np.uint8
        )
    content = np.array([0 if value is None else value for value in values], kind.to_pandas_dtype())
    return pa.Array.from_buffers(kind, len(values), [_present(values), pa.py_buffer(content)])


def list_array(values: Sequence[NDArray[np.generic] | None], kind: pa.DataType) -> pa.Array:
    """
    Return an Arrow list column of flat arrays of numbers of *kind*; None becomes null.
    """
    return _ragged(values, pa.list_(kind), kind.to_pandas_dtype())


def _ragged(values: Sequence[NDArray[Any] | None], kind: pa.DataType, element: type[np.generic]) -> pa.Array:
    lengths = np.array([0 if value is None else len(value) for value in values], np.int64)
    offsets = pa.py_buffer(np.concatenate(([0], np.cumsum(lengths))).astype(np.int32))
    flat = np.concatenate([value for value in values if value is not None] or [np.zeros(0, element)])
    buffer = pa.py_buffer(np.ascontiguousarray(flat, element))
    if kind == pa.string():
        return pa.Array.from_buffers(kind, len(values), [_present(values), offsets, buffer])
    inner = pa.Array.from_buffers(kind.value_type, len(flat), [None, buffer])
    return pa.Array.from_buffers(kind, len(values), [_present(values), offsets], children=[inner])


def _present(values: Sequence[Any]) -> pa.Buffer | None:
    there = np.array([value is not None for value in values], bool)
    return None if there.all() else pa.py_buffer(np.packbits(there, bitorder="little"))


def read_index(path: Path) -> Iterator[tuple[Clip, Row]]:
    """
    Map a shard and yield its clips; the features stay on disk until a Row is asked for them.

    A shard that is no Arrow file (a disk that lost power wrote its name before its content) is removed and yields nothing.
    """
    try:
        small = _mapped(path).drop_columns(["input_features"]).to_pydict()
    except (pa.ArrowInvalid, KeyError):
        path.unlink(missing_ok=True)
        return
    names = list(small)
    for index, values in enumerate(zip(*small.values(), strict=True)):
        yield Clip(*values[:3]), Row(path, index, dict(zip(names, values, strict=True)))


@lru_cache(maxsize=8)  # mapped pages count as memory of the process: not all shards at once
def _features(path: Path) -> tuple[NDArray[np.int32], NDArray[np.float16]]:
    column = _mapped(path)["input_features"].chunk(0)
    return column.offsets.to_numpy(), column.values.to_numpy()


def _mapped(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_stream(source).read_all()
