"""
What lies on the volume, and what of it can go: over S3, or through a pod that runs.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kidspeech.errors import InputError, RemoteError
from kidspeech.progress import Progress, silent
from kidspeech.runpod.care import reconnect
from kidspeech.runpod.models import ALIVE, RUN, NetworkVolume, Pod
from kidspeech.runpod.places import CACHE, CODE, ROOT, Places, data_key, job_key, run_key
from kidspeech.runpod.pods import Fleet
from kidspeech.runpod.ssh import Shell, plain
from kidspeech.runpod.sums import scan
from kidspeech.runpod.sync import push_rsync, push_s3
from kidspeech.runpod.volume import Entry, Volume, open_volume

STEP = re.compile(run_key(r"([^/]+)/step-(\d+)/"))
ASIDE = re.compile(run_key(r"([^/]+\.\d+)/"))
OLD_LOG = re.compile(job_key(r"([^/]+)/logs/(?!current\.log)"))


@dataclass(frozen=True)
class Leftover:
    """
    Something on the volume that no run needs any more.
    """

    folder: str
    why: str
    size: int
    keys: tuple[str, ...]


class Storage(Protocol):
    """
    The volume, by whichever way is open.
    """

    def folder(self, prefix: str) -> list[Entry]:
        """
        Return what lies directly in a folder.
        """

    def walk(self, prefix: str) -> Iterator[Entry]:
        """
        Yield every file under a folder.
        """

    def delete(self, keys: Sequence[str]) -> None:
        """
        Delete files.
        """


class OverSsh:
    """
    The volume through a running pod.
    """

    def __init__(self, shell: Shell, mount: str) -> None:
        self._shell, self._mount = shell, mount

    def folder(self, prefix: str) -> list[Entry]:
        """
        Return what lies directly in a folder.
        """
        return list(self._find(prefix, "-maxdepth", "1"))

    def walk(self, prefix: str) -> Iterator[Entry]:
        """
        Yield every file under a folder.
        """
        return self._find(prefix, "-type", "f")

    def delete(self, keys: Sequence[str]) -> None:
        """
        Delete files, and folders that this leaves empty.
        """
        if any(".." in key.split("/") or not key.startswith(f"{ROOT}/") for key in keys):
            msg = f"kidspeech deletes only under {ROOT}/ on the volume"
            raise InputError(msg)
        paths = "".join(f"{self._mount}/{key}\0" for key in keys)
        self._shell.run(["xargs", "-0r", "rm", "-f", "--"], stdin=paths, timeout=600)
        self._shell.run(["find", f"{self._mount}/{ROOT}", "-mindepth", "1", "-type", "d", "-empty", "-delete"], timeout=600)

    def _find(self, prefix: str, *tests: str) -> Iterator[Entry]:
        top = f"{self._mount}/{prefix.strip('/')}".rstrip("/")
        for line in self._shell.run(
            ["find", top, "-mindepth", "1", *tests, "-printf", r"%y %s %p\n"], timeout=300
        ).splitlines():
            kind, _, rest = line.partition(" ")
            size, _, path = rest.partition(" ")
            if path.startswith(f"{self._mount}/"):
                yield Entry(plain(path.removeprefix(f"{self._mount}/")), None if kind == "d" else int(size))


def open_storage(fleet: Fleet, volume_id: str | None = None) -> Volume | OverSsh:
    """
    Return a volume by its S3 door, or through a pod that has it.

    Raises:
        InputError: there are no S3 keys, and no pod has it.
    """
    wanted = fleet.volume(volume_id)
    if fleet.settings.s3:
        return open_volume(fleet.settings.s3, wanted, fleet.clock)
    return OverSsh(reconnect(fleet, _pod_with(fleet, wanted)).shell, fleet.settings.mount)


def push_dataset(fleet: Fleet, folder: Path, volume_id: str | None = None, progress: Progress = silent) -> str:
    """
    Bring a dataset to a volume, over S3 or through a pod that has it, and return its key there.
    """
    items, key = scan(folder, progress=progress), data_key(folder.resolve().name)
    storage = open_storage(fleet, volume_id)
    if isinstance(storage, Volume):
        push_s3(storage, folder, items, key, progress)
        return key
    goal = Places(fleet.settings.mount).path(key)
    remote = reconnect(fleet, _pod_with(fleet, fleet.volume(volume_id)))
    push_rsync(remote.shell, folder, items, goal, progress)
    remote.verify(goal, int(fleet.timing.visible))
    return key


def busy_runs(fleet: Fleet) -> set[str]:
    """
    Return the runs whose pods are up.
    """
    return {pod.env.get(RUN, "") for pod in fleet.ours() if pod.status in ALIVE}


def _pod_with(fleet: Fleet, volume: NetworkVolume) -> Pod:
    pods = [pod for pod in fleet.ours() if pod.status == "RUNNING" and pod.holds(volume.id)]
    if pods:
        return pods[0]
    msg = f"there are no S3 keys, and no pod has the volume {volume.name}: `kidspeech runpod up` first"
    raise InputError(msg)


def leftovers(storage: Volume | OverSsh | Storage, busy: Collection[str] = ()) -> list[Leftover]:
    """
    Return what can go: all but the newest checkpoint of each run, runs that were moved aside, old logs, caches, code.

    Args:
        storage: the volume.
        busy: runs that train at the moment; their folders are left alone.
    """
    entries = [entry for entry in storage.walk(ROOT) if entry.size is not None]
    newest: dict[str, int] = {}
    for entry in entries:
        if match := STEP.match(entry.key):
            newest[match[1]] = max(newest.get(match[1], 0), int(match[2]))
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        reason = _reason(entry.key, newest, busy)
        if reason is not None:
            groups.setdefault(reason, []).append(entry)
    return [
        Leftover(folder, why, sum(entry.size or 0 for entry in group), tuple(entry.key for entry in group))
        for (folder, why), group in sorted(groups.items())
    ]


def named(storage: Volume | OverSsh | Storage, paths: Sequence[str]) -> list[Leftover]:
    """
    Return folders and files that the user names, to be deleted.

    Raises:
        InputError: one lies elsewhere than in kidspeech/.
        RemoteError: there is nothing of that name.
    """
    found = []
    for path in (path.strip("/") for path in paths):
        if path.split("/")[0] != ROOT or path == ROOT or ".." in path.split("/"):
            msg = f"{path}: kidspeech deletes only what lies in {ROOT}/ on the volume"
            raise InputError(msg)
        entries = [entry for entry in storage.walk(path) if entry.size is not None]
        parent = path.rpartition("/")[0]
        entries = entries or [entry for entry in storage.folder(parent) if entry.key == path and entry.size is not None]
        if not entries:
            msg = f"{path}: there is nothing of that name on the volume; see `kidspeech runpod ls {parent}`"
            raise RemoteError(msg)
        found += [Leftover(path, "named by you", sum(e.size or 0 for e in entries), tuple(e.key for e in entries))]
    return found


def _reason(key: str, newest: dict[str, int], busy: Collection[str]) -> tuple[str, str] | None:
    if (step := STEP.match(key)) and step[1] not in busy and int(step[2]) < newest[step[1]]:
        return step[0], "an older checkpoint"
    if aside := ASIDE.match(key):
        return aside[0], "moved aside by --force-restart"
    if (old := OLD_LOG.match(key)) and old[1] not in busy:
        return f"{job_key(old[1])}/logs", "logs of earlier starts"
    for top, why in ((CACHE, "downloads and pip's cache"), (CODE, "kidspeech itself, sent again when needed")):
        if key.startswith(f"{top}/") and not busy:
            return top, why
    return None
