"""
Folders to the volume and back: over S3 where there are keys for it, else by rsync through a pod.

Either way only what changed travels, what was cut off goes on where it was, and the end is verified byte for byte.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kidspeech.errors import SshError, VolumeError
from kidspeech.progress import Progress, silent
from kidspeech.runpod.clock import Clock
from kidspeech.runpod.s3 import full_volume
from kidspeech.runpod.ssh import RSYNC_HOPELESS, Shell, rsync_argv
from kidspeech.runpod.sums import NAME, Item, md5_of, read_sums, write_sums
from kidspeech.runpod.volume import PART, Volume, safe_relative

log = logging.getLogger(__name__)

THREADS = 6
TRIES = 5
BUSY_RSYNC = ("sh", "-c", 'exec flock -s "$HOME/.kidspeech/in-use.lock" rsync "$@"', "rsync")
"""The pod's side of a transfer, which tells its watchdog that the pod is needed."""


@dataclass(frozen=True)
class Pushed:
    """
    What a push did.
    """

    sent: int
    sent_bytes: int
    kept: int


def push_s3(
    volume: Volume, folder: Path, items: Sequence[Item], prefix: str, progress: Progress = silent, part: int = PART
) -> Pushed:
    """
    Make the volume's folder *prefix* hold exactly *items*.

    Raises:
        VolumeError: full, refused, or different after the upload. What arrived stays, and the next push goes on from it.
    """
    there = {entry.key: entry for entry in volume.walk(prefix)}
    listed = read_sums(volume.read(f"{prefix}/{NAME}") or b"")
    changed = [item for item in items if not _same(item, there.get(f"{prefix}/{item.path}"), listed)]
    if listed and (changed or set(listed) != {item.path for item in items}):
        volume.delete([f"{prefix}/{NAME}"])  # from here on the folder is not whole
    total = sum(item.size for item in changed)
    bar = _Bar(progress, "pushing", total)
    jobs = [partial(_upload, volume, folder, item, prefix, bar.add, part) for item in changed]
    _in_threads(jobs, bar.show)
    volume.delete([key for key in there if key not in {f"{prefix}/{item.path}" for item in items} | {f"{prefix}/{NAME}"}])
    if changed or read_sums(write_sums(items)) != listed:
        volume.write(f"{prefix}/{NAME}", write_sums(items))
    return Pushed(len(changed), total, len(items) - len(changed))


def push_rsync(
    shell: Shell, folder: Path, items: Sequence[Item], goal: str, progress: Progress = silent, clock: Clock | None = None
) -> None:
    """
    Make the pod's folder *goal* hold *items*, and wait until their sums agree there.

    Raises:
        SshError: the connection keeps failing, or a sum differs.
    """
    shell.run(["mkdir", "-p", goal])
    shell.run(["rm", "-f", f"{goal}/{NAME}"])
    _rsync(shell, rsync_argv(shell.target, f"{folder}/", f"{goal}/", upload=True, remote_rsync=BUSY_RSYNC), progress, clock)
    shell.run(["sh", "-c", 'cat >"$1"', "sh", f"{goal}/{NAME}"], stdin=write_sums(items).decode())


def pull_s3(volume: Volume, prefix: str, sums: dict[str, str], goal: Path, progress: Progress = silent) -> list[Path]:
    """
    Fetch the files of *sums* from the volume's folder into *goal*, those that differ from what is there.

    Raises:
        VolumeError: one is missing, differs after the download, or would land outside of *goal*.
    """
    wanted = [path for path in sums if not _here(_inside(goal, path), sums[path])]
    bar = _Bar(progress, "fetching", len(wanted))

    def fetch(path: str) -> None:
        volume.get(f"{prefix}/{path}", _inside(goal, path))
        bar.add(1)

    _in_threads([partial(fetch, path) for path in wanted], bar.show)
    return check(goal, sums)


def pull_rsync(
    shell: Shell, source: str, sums: dict[str, str], goal: Path, progress: Progress = silent, clock: Clock | None = None
) -> list[Path]:
    """
    Fetch the files of *sums* from the pod's folder into *goal*.

    Raises:
        SshError: the connection keeps failing.
        VolumeError: one differs after the download, or would land outside of *goal*.
    """
    goal.mkdir(parents=True, exist_ok=True)
    for path in sums:
        _inside(goal, path)
    tops = sorted({path.split("/")[0] for path in sums})
    for top in tops:
        slash = "/" if any(path.startswith(f"{top}/") for path in sums) else ""
        argv = rsync_argv(
            shell.target, f"{source}/{top}{slash}", f"{goal}/{top}{slash}", upload=False, remote_rsync=BUSY_RSYNC
        )
        _rsync(shell, argv, progress, clock)
    return check(goal, sums)


def check(goal: Path, sums: dict[str, str]) -> list[Path]:
    """
    Return the files of *sums* under *goal*.

    Raises:
        VolumeError: one is missing or different.
    """
    wrong = [path for path, md5 in sums.items() if not _here(_inside(goal, path), md5)]
    if wrong:
        msg = f"{len(wrong)} of {len(sums)} fetched files differ from what the pod wrote, {goal / wrong[0]} first: fetch again"
        raise VolumeError(msg)
    return [_inside(goal, path) for path in sums]


def _same(item: Item, entry: object, listed: dict[str, str]) -> bool:
    """
    Tell whether the volume has the file: of that size, and of that sum by its tag or by a finished push's list.
    """
    size, etag = getattr(entry, "size", None), getattr(entry, "etag", "")
    return size == item.size and item.md5 in {etag, listed.get(item.path)}


def _upload(volume: Volume, folder: Path, item: Item, prefix: str, on_bytes: Callable[[int], None], part: int) -> None:
    key = f"{prefix}/{item.path}"
    volume.put(key, folder / item.path, on_bytes, part)
    entry = volume.head(key)
    if entry is None or entry.size != item.size:  # seen in the field: "uploaded", then 404
        volume.put(key, folder / item.path, part=part)
        entry = volume.head(key)
    if entry is None or entry.size != item.size:
        msg = f"{key}: the volume has {'nothing' if entry is None else f'{entry.size} bytes'} of it after two uploads"
        raise VolumeError(msg)


def _in_threads(jobs: Iterable[Callable[[], None]], show: Callable[[], None]) -> None:
    """
    Run *jobs* and report now and then; the first failure stops those that have not begun.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        waiting: set[Future[None]] = {pool.submit(job) for job in jobs}
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                show()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class _Bar:
    """
    Bytes counted in threads, shown from the main one.
    """

    def __init__(self, progress: Progress, stage: str, total: float) -> None:
        self._progress, self._stage, self._total = progress, stage, total
        self._done = 0.0
        self._lock = threading.Lock()

    def add(self, amount: float) -> None:
        with self._lock:
            self._done += amount

    def show(self) -> None:
        self._progress(self._stage, min(self._done, self._total), self._total)


def _rsync(shell: Shell, argv: Sequence[str], progress: Progress, clock: Clock | None) -> None:
    for attempt in range(TRIES):
        try:
            for percent, speed in shell.copy(argv):
                progress("copying", percent, 100, speed)
            return
        except SshError as error:
            if "No space left" in str(error):
                raise full_volume() from None
            if attempt == TRIES - 1 or error.code in RSYNC_HOPELESS:
                raise
            log.info("the copy was cut (%s); going on", error)
            (clock or Clock()).sleep(2.0**attempt)


def _inside(goal: Path, path: str) -> Path:
    return goal / safe_relative(f"x/{path}", "x")


def _here(path: Path, md5: str) -> bool:
    return path.is_file() and not path.is_symlink() and md5_of(path) == md5
