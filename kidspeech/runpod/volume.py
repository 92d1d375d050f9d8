"""
The network volume through its S3 door, with what that door is known for: no batch delete, listings whose next page is
the last one again, 403 on what was just written, 413 on large parts, 507 when the volume is full.

A key is a path under the volume's mount. Keys that come back are data: one that points outside is refused.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from kidspeech.errors import VolumeError
from kidspeech.runpod.clock import Clock
from kidspeech.runpod.models import NetworkVolume
from kidspeech.runpod.s3 import PAUSES, Patience, TooLargeError, connect
from kidspeech.runpod.settings import S3Settings

log = logging.getLogger(__name__)

PART = 64 * 2**20  # bytes; RunPod's documents allow 500 MB, users saw 413 at 200 MB and none at 64
SMALLEST_PART = 5 * 2**20
PAGE = 1000
OnBytes = Callable[[int], None]


@dataclass(frozen=True)
class Entry:
    """
    An object, or with size None a folder.
    """

    key: str
    size: int | None
    etag: str = ""


def open_volume(s3: S3Settings, volume: NetworkVolume, clock: Clock | None = None) -> Volume:
    """
    Return the volume behind its S3 door.
    """
    return Volume(connect(s3, volume), s3.bucket or volume.id, clock)


class Volume:
    """
    The objects of one volume. Safe to use from several threads, as its client is.
    """

    def __init__(self, client: Any, bucket: str, clock: Clock | None = None) -> None:
        self._s3 = client
        self._bucket = bucket
        self._clock = clock or Clock()
        self._call = Patience(self._clock)

    def folder(self, prefix: str) -> list[Entry]:
        """
        Return what lies directly in a folder: its objects and its sub-folders.

        Raises:
            VolumeError: the listing does not come to an end; a part of it is never returned as the whole.
        """
        prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        found: dict[str, Entry] = {}
        for page in self._pages(prefix):
            found |= {entry.key: entry for entry in _entries(page, prefix)}
        return [found[key] for key in sorted(found)]

    def walk(self, prefix: str) -> Iterator[Entry]:
        """
        Yield every object under a folder, one folder's listing at a time: deep listings lose pages there.
        """
        for entry in self.folder(prefix):
            if entry.size is None:
                yield from self.walk(entry.key)
            else:
                yield entry

    def head(self, key: str) -> Entry | None:
        """
        Return an object's size and tag, or None where there is none. A 403 may only mean "still being hashed".
        """
        answer = self._call(lambda: self._s3.head_object(Bucket=self._bucket, Key=key), missing=True, forbidden=True)
        return None if answer is None else Entry(key, int(answer["ContentLength"]), str(answer["ETag"]).strip('"'))

    def read(self, key: str) -> bytes | None:
        """
        Return a small object's content, or None where there is none.
        """

        def get() -> bytes:
            content: bytes = self._s3.get_object(Bucket=self._bucket, Key=key)["Body"].read()
            return content

        return self._call(get, missing=True)

    def write(self, key: str, content: bytes) -> None:
        """
        Write a small object.
        """
        self._call(lambda: self._s3.put_object(Bucket=self._bucket, Key=key, Body=content))

    def put(self, key: str, file: Path, on_bytes: OnBytes = lambda _: None, part: int = PART) -> None:
        """
        Upload a file, in parts where it is large; parts that an earlier attempt left whole are not sent again.

        Raises:
            VolumeError: the volume is full, or the upload does not verify.
        """
        while True:
            try:
                if file.stat().st_size <= part:
                    self._call(lambda: self._put_whole(key, file))
                    on_bytes(file.stat().st_size)
                else:
                    self._put_parts(key, file, on_bytes, part)
                return
            except TooLargeError:
                part = part // 2
                if part < SMALLEST_PART:
                    raise
                log.info("%s: parts of %d MB are too large for the service", key, part // 2**20 * 2)

    def get(self, key: str, file: Path, on_bytes: OnBytes = lambda _: None) -> None:
        """
        Download an object beside *file* and rename it there when it is whole.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(f".{file.name}.{threading.get_ident()}.part")
        try:
            self._call(lambda: self._get_into(key, beside))
            on_bytes(beside.stat().st_size)
            beside.replace(file)
        finally:
            beside.unlink(missing_ok=True)

    def delete(self, keys: Sequence[str]) -> None:
        """
        Delete objects one by one: the batch call is answered with a redirect there.
        """
        for key in keys:
            self._call(partial(self._s3.delete_object, Bucket=self._bucket, Key=key), missing=True)

    def abandon_uploads(self, prefix: str) -> int:
        """
        Drop unfinished uploads under *prefix*, whose parts take room unseen; return how many there were.
        """
        left = self._uploads(prefix)
        for upload in left:
            self._call(partial(self._abort, upload["Key"], upload["UploadId"]), missing=True)
        return len(left)

    def _pages(self, prefix: str) -> Iterator[dict[str, Any]]:
        query: dict[str, Any] = {"Bucket": self._bucket, "Prefix": prefix, "Delimiter": "/", "MaxKeys": PAGE}
        tokens: set[str] = set()
        last, stuck = "", 0
        while True:
            page: dict[str, Any] = self._call(partial(self._s3.list_objects_v2, **query)) or {}
            yield page
            if not page.get("IsTruncated"):
                return
            newest = _last_name(page)
            token = page.get("NextContinuationToken", "")
            if token and token not in tokens and newest > last:
                tokens, last, stuck = tokens | {token}, newest, 0
                query = {**query, "ContinuationToken": token}
                continue
            # The token leads in a circle: the service is still hashing files written on the pod. Go on by name instead.
            if stuck == len(PAUSES):
                msg = f"the volume's listing of {prefix or '/'} does not end; it is being indexed: try again in some minutes"
                raise VolumeError(msg)
            last = max(last, newest)
            self._clock.sleep(PAUSES[stuck])
            stuck += 1
            query = {k: v for k, v in query.items() if k != "ContinuationToken"} | {"StartAfter": last}

    def _put_whole(self, key: str, file: Path) -> None:
        with file.open("rb") as body:
            self._s3.put_object(Bucket=self._bucket, Key=key, Body=body)

    def _put_parts(self, key: str, file: Path, on_bytes: OnBytes, part: int) -> None:
        upload, kept = self._resumable(key)
        parts = []
        with file.open("rb") as stream:
            for number, content in enumerate(iter(lambda: stream.read(part), b""), start=1):
                tag = hashlib.md5(content, usedforsecurity=False).hexdigest()
                if kept.get(number) != tag:
                    tag = self._put_part(key, upload, number, content)
                parts += [{"PartNumber": number, "ETag": f'"{tag}"'}]
                on_bytes(len(content))
        self._complete(key, upload, parts, file.stat().st_size)

    def _put_part(self, key: str, upload: str, number: int, content: bytes) -> str:
        def send() -> str:
            answer = self._s3.upload_part(Bucket=self._bucket, Key=key, UploadId=upload, PartNumber=number, Body=content)
            return str(answer["ETag"]).strip('"')

        try:
            tag = self._call(send)
        except TooLargeError:
            self._call(lambda: self._abort(key, upload), missing=True)
            raise
        assert tag is not None  # only where missing=True
        return tag

    def _resumable(self, key: str) -> tuple[str, dict[int, str]]:
        """
        Return an upload of *key* that is already under way with the tags of its parts, or a new one.
        """
        for upload in self._uploads(key):
            if upload["Key"] == key:
                query = {"Bucket": self._bucket, "Key": key, "UploadId": upload["UploadId"]}
                answer = self._call(partial(self._s3.list_parts, **query), missing=True)
                if answer is not None:
                    return upload["UploadId"], {p["PartNumber"]: p["ETag"].strip('"') for p in answer.get("Parts", ())}
        answer = self._call(lambda: self._s3.create_multipart_upload(Bucket=self._bucket, Key=key))
        return str((answer or {})["UploadId"]), {}

    def _uploads(self, prefix: str) -> list[dict[str, Any]]:
        answer = self._call(lambda: self._s3.list_multipart_uploads(Bucket=self._bucket, Prefix=prefix), missing=True)
        return [upload for upload in (answer or {}).get("Uploads", ()) if upload["Key"].startswith(prefix)]

    def _complete(self, key: str, upload: str, parts: list[dict[str, Any]], size: int) -> None:
        query = {"Bucket": self._bucket, "Key": key, "UploadId": upload, "MultipartUpload": {"Parts": parts}}
        answer = self._call(lambda: self._s3.complete_multipart_upload(**query), missing=True)
        # "No such upload" also follows a completion whose answer got lost; the object's size tells.
        if answer is None and (entry := self.head(key)) is not None and entry.size != size:
            msg = f"{key}: the volume lost the upload; push again"
            raise VolumeError(msg)

    def _abort(self, key: str, upload: str) -> None:
        self._s3.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload)

    def _get_into(self, key: str, beside: Path) -> None:
        answer = self._s3.get_object(Bucket=self._bucket, Key=key)
        with beside.open("wb") as stream:
            for chunk in answer["Body"].iter_chunks(2**20):
                stream.write(chunk)
        if beside.stat().st_size != int(answer["ContentLength"]):
            msg = f"{key}: the download ended early"
            raise ConnectionError(msg)


def safe_relative(key: str, prefix: str) -> PurePosixPath:
    """
    Return the path of *key* under *prefix*, for a file here.

    Raises:
        VolumeError: it leads elsewhere: upwards, to the root, to a drive, to a hidden control character.
    """
    inside = key.removeprefix(f"{prefix.strip('/')}/")
    path = PurePosixPath(inside)
    odd = "\\" in key or ":" in inside or not inside.isprintable() or "//" in inside
    if odd or inside == key or not path.parts or path.is_absolute() or any(part in {"..", "."} for part in inside.split("/")):
        msg = f"the volume names an object {key!r}, which would land outside of the folder asked for; refused"
        raise VolumeError(msg)
    return path


def _entries(page: dict[str, Any], prefix: str) -> Iterator[Entry]:
    for item in page.get("CommonPrefixes", ()):
        if item["Prefix"].startswith(prefix):
            yield Entry(item["Prefix"].rstrip("/"), None)
    for item in page.get("Contents", ()):
        if item["Key"].startswith(prefix) and not item["Key"].endswith("/"):
            yield Entry(item["Key"], int(item["Size"]), str(item.get("ETag", "")).strip('"'))


def _last_name(page: dict[str, Any]) -> str:
    names = [item["Key"] for item in page.get("Contents", ())]
    return max([*names, *(item["Prefix"] for item in page.get("CommonPrefixes", ()))], default="")
