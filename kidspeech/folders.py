"""
Folders that are written by one process at a time, aside and renamed, so that what is there is whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from kidspeech.errors import BusyError, writing


def default_cache() -> Path:
    """
    Return $KIDSPEECH_CACHE, or kidspeech's folder under the user's cache.
    """
    return Path(os.environ.get("KIDSPEECH_CACHE") or Path.home() / ".cache" / "kidspeech")


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """
    Hold a lock that the operating system gives back whatever way this process ends.

    Raises:
        BusyError: another process holds it.
        StorageError: the lock file can't be made.
    """
    lock = filelock.FileLock(path, blocking=False)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except filelock.Timeout as error:  # an OSError too, but not one of writing
            msg = f"another kidspeech is writing {what}; wait until it is done, or choose another folder"
            raise BusyError(msg) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """
    Give a new empty folder to write into, and put it in the place of *folder* when the block is through.

    If the block fails nothing is left behind: on a full disk it is what fills it.

    Raises:
        StorageError: the disk is full or can't be written; *folder* is as it was.
    """
    aside = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    with writing(folder):
        try:
            aside.mkdir(parents=True)
            yield aside
            _replace(aside, folder)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise


def _replace(new: Path, old: Path) -> None:
    retired = old.with_name(f".{old.name}.old")
    shutil.rmtree(retired, ignore_errors=True)
    if old.exists():
        old.rename(retired)
    new.rename(old)
    shutil.rmtree(retired, ignore_errors=True)
