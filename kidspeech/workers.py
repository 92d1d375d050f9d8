"""
Worker processes that fill the feature cache.

A decoder that takes its process down with it must cost one clip, not a run: each worker notes the clip it is on, and
after a death the noted clips are tried alone before anything is given up. That holds across runs too: the notes of a
process that died with nobody left to ask are found by the next.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path

from kidspeech.clips import Clip
from kidspeech.errors import StorageError, writing
from kidspeech.features import Featurizer
from kidspeech.processes import kills, spawned
from kidspeech.progress import Progress
from kidspeech.reading import KILLS, compute_row, problem_row
from kidspeech.shards import SHARD, write_shard

ALONE = 64  # clips: fewer are done faster here than a worker starts

Shard = Sequence[Clip]


def compute(clips: Sequence[Clip], featurizer: Featurizer, folder: Path, progress: Progress, workers: int) -> None:
    """
    Write shards for *clips* into *folder*, whose lock the caller holds.

    Raises:
        StorageError: the disk is full, or workers die before they read anything; finished shards stay.
    """
    shards = [clips[start : start + SHARD] for start in range(0, len(clips), SHARD)]
    deadly = {clip for clip in _noted(clips, folder) if kills(compute_row, clip, featurizer)}
    _sweep(folder)
    shard_at_a_time = _here if workers == 1 or len(clips) < ALONE else _in_workers
    done = 0
    for finished, note in shard_at_a_time(shards, featurizer, folder, workers, deadly):
        done += finished
        progress("reading audio", done, len(clips), note)


def _here(
    shards: Sequence[Shard], featurizer: Featurizer, folder: Path, workers: int, deadly: set[Clip]
) -> Iterator[tuple[int, str]]:
    del workers  # there is but this process
    for shard in shards:
        yield _shard(shard, featurizer, folder, frozenset(deadly)), ""


def _in_workers(
    shards: Sequence[Shard], featurizer: Featurizer, folder: Path, workers: int, deadly: set[Clip]
) -> Iterator[tuple[int, str]]:
    waiting = list(shards)
    while waiting:
        reported = set[Path]()
        for shard in _round(waiting, featurizer, folder, workers, deadly):
            reported.add(_path(shard, folder))
            yield len(shard), ""
        # a death breaks the whole pool: shards that were finished by then count, whoever was to report them
        finished = [shard for shard in waiting if _path(shard, folder).is_file()]
        yield sum(len(shard) for shard in finished if _path(shard, folder) not in reported), ""
        waiting = [shard for shard in waiting if not _path(shard, folder).is_file()]
        if waiting:
            noted = _noted([clip for shard in waiting for clip in shard], folder)
            killers = _killers(noted, featurizer, folder, workers)
            yield 0, f"a worker died at {', '.join(clip.path for clip in killers or noted)}"
            deadly |= killers
            workers = workers if killers else max(1, workers // 2)  # dying only side by side: memory may be short
            _sweep(folder)


def _round(shards: Sequence[Shard], featurizer: Featurizer, folder: Path, workers: int, deadly: set[Clip]) -> Iterator[Shard]:
    jobs: dict[Future[int], Shard] = {}
    with spawned(min(workers, len(shards))) as pool, suppress(BrokenProcessPool):  # submit raises it too
        for shard in shards:
            jobs[pool.submit(_shard, shard, featurizer, folder, frozenset(deadly))] = shard
        for job in as_completed(jobs):
            job.result()
            yield jobs[job]


def _killers(noted: Sequence[Clip], featurizer: Featurizer, folder: Path, workers: int) -> set[Clip]:
    if not noted:
        msg = f"worker processes die before they read a clip into {folder}; prepare with data.workers=1 to see why"
        raise StorageError(msg)
    # with one worker it is known who was at work; a clip that kills only now and then must not hold the run up for ever
    return set(noted) if workers == 1 else {clip for clip in noted if kills(compute_row, clip, featurizer)}


def _shard(clips: Shard, featurizer: Featurizer, folder: Path, deadly: frozenset[Clip]) -> int:
    path = _path(clips, folder)
    note = path.with_suffix(".at")
    rows = []
    with writing(note), note.open("wb", buffering=0) as at:
        for clip in clips:
            at.seek(0)
            at.write(os.fsencode(clip.path) + b"\0")  # no path holds a zero; what a longer one left behind it is ignored
            rows.append(problem_row(clip, KILLS) if clip in deadly else compute_row(clip, featurizer))
    write_shard(path, rows)
    note.unlink(missing_ok=True)
    return len(clips)


def _path(clips: Shard, folder: Path) -> Path:
    digest = hashlib.sha256("\n".join(f"{clip.path} {clip.size} {clip.mtime_ns}" for clip in clips).encode())
    return folder / f"{digest.hexdigest()[:20]}.arrow"


def _noted(clips: Iterable[Clip], folder: Path) -> list[Clip]:
    paths = {os.fsdecode(note.read_bytes().partition(b"\0")[0]) for note in folder.glob("*.at")}
    return [clip for clip in clips if clip.path in paths]


def _sweep(folder: Path) -> None:
    with writing(folder):
        for leftover in [*folder.glob("*.tmp"), *folder.glob("*.at")]:
            leftover.unlink(missing_ok=True)
