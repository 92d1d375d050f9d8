"""
Audio read and made into features ahead of whoever decodes it, in other threads or processes.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from kidspeech.clips import Clip
from kidspeech.features import Featurizer
from kidspeech.processes import spawned
from kidspeech.reading import KILLS, compute_row, problem_row

FEW = 1000  # clips: a thread of this process has read them before spawned processes would have imported torch
AHEAD = 3  # batches read ahead for each worker: a batch of 1,200 s takes 19 MB

Rows = list[dict[str, Any]]


def read_ahead(batches: Sequence[Sequence[Clip]], featurizer: Featurizer, workers: int | None) -> Iterator[Rows]:
    """
    Yield the rows of each batch (see kidspeech.reading), in order, while later ones are being read.

    A file that kills the process that reads it costs its own row: the batch it is in is then read one by one.

    Args:
        batches: clips, in the order in which they are wanted.
        featurizer: from samples to features.
        workers: processes; None for one a core but one. A run of up to FEW clips has one thread instead.
    """
    if sum(map(len, batches)) <= FEW:
        with ThreadPoolExecutor(1) as pool:
            yield from _in_order(pool, batches, featurizer, depth=AHEAD)
        return
    count = workers or max(1, (os.cpu_count() or 2) - 1)
    place = 0
    while place < len(batches):
        try:
            with spawned(count) as pool:
                for rows in _in_order(pool, batches[place:], featurizer, depth=AHEAD * count):
                    place += 1
                    yield rows
        except BrokenProcessPool:
            yield one_by_one(batches[place], featurizer)
            place += 1


def one_by_one(clips: Sequence[Clip], featurizer: Featurizer) -> Rows:
    """
    Return the rows of *clips* where one of them has killed a process; it gets its problem in words.
    """
    rows: Rows = []
    while len(rows) < len(clips):
        with spawned(1) as pool:
            try:
                rows += (pool.submit(compute_row, clip, featurizer).result() for clip in clips[len(rows) :])
            except BrokenProcessPool:
                rows.append(problem_row(clips[len(rows)], KILLS))
    return rows


def _in_order(pool: Executor, batches: Sequence[Sequence[Clip]], featurizer: Featurizer, *, depth: int) -> Iterator[Rows]:
    waiting: deque[Future[Rows]] = deque()
    for clips in batches:
        waiting.append(pool.submit(_rows, clips, featurizer))
        if len(waiting) > depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _rows(clips: Sequence[Clip], featurizer: Featurizer) -> Rows:
    return [compute_row(clip, featurizer) for clip in clips]
