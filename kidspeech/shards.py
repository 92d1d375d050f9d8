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
    columns = {name: [row.get(name) for row in rows] for name in SCHEMA.names[:-1]}
    arrays = [pa.array(columns[name], SCHEMA.field(name).type) for name in columns]
    features = list_array([row.get("input_features") for row in rows])
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    with writing(path):
        try:
            with pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as stream:
                stream.write_batch(pa.record_batch([*arrays, features], schema=SCHEMA))
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)  # on a full disk it is what fills it
            raise


def list_array(values: Sequence[NDArray[np.float16] | None]) -> pa.ListArray:
    """
    Return an Arrow list column of flat float16 arrays; None becomes null.
    """
    lengths = np.array([0 if value is None else len(value) for value in values])
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    flat = np.concatenate([value for value in values if value is not None] or [np.zeros(0, np.float16)])
    mask = pa.array([value is None for value in values])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, pa.float16()), mask=mask)


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
