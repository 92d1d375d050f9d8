"""
A pool of worker processes that read audio.

They are spawned, not forked (forking a process that has used torch or tokenizers can hang), with one torch thread each, and
end with the process that started them, however that ends.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from typing import Any

import torch

# glibc's mallopt: below the first, memory stays in the heap; up to the second, the heap is not handed back (in bytes)
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, HEAP = -3, -1, 256 * 2**20


@contextmanager
def spawned(workers: int) -> Iterator[ProcessPoolExecutor]:
    """
    Give a pool of *workers* spawned processes; leaving the block drops what waits in its queue.
    """
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C or a full disk only what is in hand is finished, not the queue


def kills(work: Callable[..., Any], *arguments: Any) -> bool:
    """
    Return whether *work* takes down the process it runs in, tried in one of its own.
    """
    with spawned(1) as pool:
        return isinstance(pool.submit(work, *arguments).exception(), BrokenProcessPool)


def _start() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # not glibc
            _keep_heap(ctypes.CDLL(None))


def _end_with_parent() -> None:
    # a pool's workers hold each other's queue open: after a kill -9 of the parent they would wait on it for ever
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _keep_heap(libc: ctypes.CDLL) -> None:
    # arrays of half a megabyte come and go with every clip; mapping each anew costs a page fault every 4 kB
    libc.mallopt(M_MMAP_THRESHOLD, HEAP)
    libc.mallopt(M_TRIM_THRESHOLD, HEAP)
