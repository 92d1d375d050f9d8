"""
A dataset's folder at an fsspec URL (s3://bucket/data): uploaded with its marker last, fetched once into the cache.

files.json is the marker. It lists the size and md5 of each file that has arrived, and says whether these are all: a folder
whose upload was broken off is known as such, and the next upload sends what is missing. Nobody can read half of a dataset,
nor half of a new one and half of the old.

s3:// is reached through pyarrow, which brings its own client and reads the usual variables (AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_PROFILE, AWS_REGION, AWS_ENDPOINT_URL), as s3fs pins a botocore that boto3 has
long left behind. Other protocols need what fsspec names for them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import filelock

from kidspeech.errors import DatasetError, StorageError
from kidspeech.folders import default_cache, written_aside
from kidspeech.progress import Progress, silent

MARKER = "files.json"
LOCAL = (errno.ENOSPC, errno.EDQUOT)  # this disk is full, whatever the other side does
PIECE = 16 * 2**20  # bytes
Files = dict[str, dict[str, Any]]  # size in bytes and md5 of each file, by its path below the folder


def is_remote(place: Path | str) -> bool:
    """
    Return whether *place* is a URL and not a folder.
    """
    return "://" in str(place)


def local_folder(place: Path | str, *, cache: Path | None = None, progress: Progress = silent) -> Path:
    """
    Return the folder of a dataset; one at a URL is fetched into the cache, unless its like is there.

    Raises:
        DatasetError: there is none, it is half written, it can't be reached, or it is not what its marker says.
        StorageError: the disk is full.
    """
    return _fetched(str(place), cache or default_cache(), progress) if is_remote(place) else Path(place)


def staging(url: str, cache: Path) -> Path:
    """
    Return the folder in which the dataset for *url* is made before it is uploaded.
    """
    return cache / "uploads" / f"{PurePosixPath(url).name}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"


def upload(folder: Path, url: str, progress: Progress = silent) -> None:
    """
    Make the folder at *url* equal to *folder*, a prepared dataset; what is there already is not sent again.

    Raises:
        DatasetError: *url* holds something else than a dataset.
        StorageError: it can't be reached or written; the next call goes on from the files that arrived.
    """
    with _speaking(url, StorageError, "write"):
        there = _connected(url)
        marker = there.marker()
        if marker is None and there.files():
            msg = f"{url} holds files and is no prepared dataset; choose another --out, or remove them"
            raise DatasetError(msg)
        then: Files = marker["files"] if marker else {}
        made_of = (folder / "prepare.json").read_text(encoding="utf-8")
        if marker and marker["complete"] and marker["prepared"] == made_of:
            return
        _send(folder, there, then, made_of, progress)


def _send(folder: Path, there: Remote, then: Files, made_of: str, progress: Progress) -> None:
    now = _listed(folder)
    arrived = {name: facts for name, facts in now.items() if then.get(name) == facts}
    there.mark(arrived, complete=False)  # from here on nobody reads it
    total, done = sum(facts["size"] for facts in now.values()), sum(facts["size"] for facts in arrived.values())
    for name in [name for name in now if name not in arrived]:
        there.put(folder / name, name)
        arrived[name] = now[name]
        there.mark(arrived, complete=False)
        done += now[name]["size"]
        progress("uploading", done, total, name)
    for name in sorted(set(then) - set(now)):
        there.system.rm_file(f"{there.root}/{name}")
    there.mark(now, complete=True, prepared=made_of)


def _fetched(url: str, cache: Path, progress: Progress) -> Path:
    with _speaking(url, DatasetError, "read"):
        there = _connected(url)
        marker = there.marker()
        if marker is None:
            msg = f"no dataset at {url} (it has no {MARKER}); make it with kidspeech prepare … --out {url}"
            raise DatasetError(msg)
        if not marker["complete"]:
            msg = f"{url} is half written: an upload goes on, or was broken off; run its kidspeech prepare to the end"
            raise DatasetError(msg)
        files: Files = marker["files"]
        digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]
        folder = cache / "fetched" / digest
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder.with_suffix(".lock")):  # the other processes of a training wait for the first
            if not folder.is_dir():
                _fetch(there, files, folder, progress)
    return folder


def _fetch(there: Remote, files: Files, folder: Path, progress: Progress) -> None:
    total, done = sum(facts["size"] for facts in files.values()), 0
    with written_aside(folder) as aside:
        for name, facts in files.items():
            path = aside / _inside(name, there)
            path.parent.mkdir(parents=True, exist_ok=True)
            with _speaking(f"{there.url}/{name}", DatasetError, "read"):
                there.system.get_file(f"{there.root}/{name}", str(path))
            if _facts(path) != facts:
                msg = f"{there.url}/{name} is not what {MARKER} says: it changed, or is damaged; run kidspeech prepare again"
                raise DatasetError(msg)
            done += facts["size"]
            progress("fetching", done, total, name)


def _inside(name: str, there: Remote) -> str:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        msg = f"{there.url}/{MARKER} names {name}, which lies outside the dataset; don't trust it"
        raise DatasetError(msg)
    return name


@dataclass(frozen=True)
class Remote:
    """
    A folder on the other side.
    """

    url: str
    system: Any
    """An fsspec file system."""
    root: str
    """The folder's path in it."""

    def marker(self) -> dict[str, Any] | None:
        """
        Return what files.json says, or None where there is none.
        """
        try:
            found = json.loads(self.system.cat_file(f"{self.root}/{MARKER}"))
            return {"complete": bool(found["complete"]), "files": dict(found["files"]), "prepared": found["prepared"]}
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            msg = f"{self.url}/{MARKER} was not written by kidspeech ({error}); choose another place"
            raise DatasetError(msg) from error

    def mark(self, files: Files, *, complete: bool, prepared: str = "") -> None:
        """
        Write files.json; *prepared* is the dataset's prepare.json, by which a second upload knows that nothing changed.
        """
        content = json.dumps({"complete": complete, "files": files, "prepared": prepared}, indent=1)
        self.system.pipe_file(f"{self.root}/{MARKER}", content.encode())

    def put(self, path: Path, name: str) -> None:
        """
        Send the file *path*. Not by put_file of fsspec, which leaves empty objects behind that stand for folders.
        """
        with path.open("rb") as file, self.system.open(f"{self.root}/{name}", "wb") as out:
            shutil.copyfileobj(file, out, PIECE)

    def files(self) -> list[str]:
        """
        Return what lies there.
        """
        try:
            return list(self.system.find(self.root))
        except FileNotFoundError:
            return []


def _connected(url: str) -> Remote:
    url = url.rstrip("/")
    if url.startswith("s3://"):
        from fsspec.implementations.arrow import ArrowFSWrapper
        from pyarrow.fs import S3FileSystem

        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        return Remote(url, ArrowFSWrapper(S3FileSystem(endpoint_override=endpoint)), url.removeprefix("s3://"))
    from fsspec.core import url_to_fs

    system, root = url_to_fs(url)
    return Remote(url, system, root)


def _listed(folder: Path) -> Files:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _facts(path) for path in paths}


def _facts(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "md5": hashlib.file_digest(file, "md5").hexdigest()}


@contextmanager
def _speaking(url: str, kind: type[DatasetError | StorageError], verb: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ImportError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in LOCAL:
            raise
        msg = f"can't {verb} {url}: {error}; check the URL, its keys and the network"
        raise kind(msg) from error
