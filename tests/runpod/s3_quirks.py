"""
A real S3 server (moto's) with what RunPod's is known for, and a folder that shows the same files: the volume's mount.
"""

from __future__ import annotations

import hashlib
import threading
import urllib.parse
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Environ = dict[str, Any]
ACCESS, SECRET = "user_2abcSECRETID", "rps_SECRETSECRETSECRET"


@dataclass
class Quirks:
    """
    What goes wrong, and how often.
    """

    largest: int = 2**40
    """Bytes in one request above which it is refused with 413."""
    room: int = 2**40
    """Bytes that the volume takes before it answers 507."""
    fresh_403: int = 0
    """How many HEADs of a fresh object are forbidden."""
    circling: int = 0
    """How many listings give their continuation token again."""
    cut_at: int = 0
    """Number of the upload request from here that is cut in the middle; 0 is none."""
    status: list[int] = field(default_factory=list)
    """Statuses of the next requests, whatever they are."""
    evil: str = ""
    """A key that is slipped into every listing."""
    lose: int = 0
    """How many uploads are answered well and not stored."""


class S3:
    """
    The server; start it with `with`.
    """

    def __init__(self, bucket: str, mount: Path) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        self.bucket, self.mount, self.quirks = bucket, mount, Quirks()
        self.log: list[str] = []
        self.sent = 0
        self._heads: dict[str, int] = {}
        self._inner: Any = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.RLock()
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> S3:
        from moto.s3.models import s3_backends

        self._backend: Any = s3_backends["123456789012"]["aws"]
        self._backend.reset()
        self._backend.create_bucket(self.bucket, "us-east-1")
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, environ: Environ, start: Callable[..., Any]) -> Iterable[bytes]:
        query = urllib.parse.parse_qs(environ["QUERY_STRING"], keep_blank_values=True)
        method, key = (
            environ["REQUEST_METHOD"],
            urllib.parse.unquote(environ["PATH_INFO"].removeprefix(f"/{self.bucket}").strip("/")),
        )
        size = int(environ.get("CONTENT_LENGTH") or 0)
        with self._lock:
            self.log.append(f"{method} {key} {environ['QUERY_STRING']}")
            early = self._quirk(method, key, query, size, environ)
            if early == -1:
                return []
            if early:
                start(f"{early} Quirk", [("Content-Type", "application/xml")])
                return [b"<Error><Code>Quirk</Code></Error>"] if method != "HEAD" else []
            self._from_mount()
            if self.quirks.lose and method == "PUT":
                self.quirks.lose -= 1
                environ["wsgi.input"].read(size)
                start("200 OK", [("ETag", '"x"')])
                return []
            answer = list(self._inner(environ, start if method != "GET" else self._listing(start, query)))
            if method == "GET" and "list-type" in query:
                answer = [self._twist(b"".join(answer), query)]
            self._to_mount(method, key, query)
            return answer

    def _quirk(self, method: str, key: str, query: dict[str, list[str]], size: int, environ: Environ) -> int:
        quirks = self.quirks
        if quirks.status:
            return quirks.status.pop(0)
        if method == "POST" and "delete" in query:
            return 307
        if method == "PUT":
            return self._put_quirk(size, environ)
        if method == "HEAD" and self._heads.get(key, quirks.fresh_403) > 0:
            self._heads[key] = self._heads.get(key, quirks.fresh_403) - 1
            return 403
        return 0

    def _put_quirk(self, size: int, environ: Environ) -> int:
        if size > self.quirks.largest:
            environ["wsgi.input"].read(size)
            return 413
        if self.quirks.cut_at:
            self.quirks.cut_at -= 1
            if self.quirks.cut_at == 0:
                environ["wsgi.input"].read(size // 2)
                environ["werkzeug.socket"].shutdown(2)
                return -1
        if self.sent + size > self.quirks.room:
            environ["wsgi.input"].read(size)
            return 507
        self.sent += size
        return 0

    def _listing(self, start: Callable[..., Any], query: dict[str, list[str]]) -> Callable[..., Any]:
        def begin(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            kept = [(k, v) for k, v in headers if not ("list-type" in query and k.lower() == "content-length")]
            return start(status, kept, *rest)

        return begin

    def _twist(self, body: bytes, query: dict[str, list[str]]) -> bytes:
        if self.quirks.evil:
            entry = f"<Contents><Key>{self.quirks.evil}</Key><Size>1</Size><ETag>x</ETag></Contents></ListBucketResult>"
            body = body.replace(b"</ListBucketResult>", entry.encode())
        token = query.get("continuation-token", [""])[0]
        if self.quirks.circling and token and b"<NextContinuationToken>" in body:
            self.quirks.circling -= 1
            head, _, rest = body.partition(b"<NextContinuationToken>")
            body = head + b"<NextContinuationToken>" + token.encode() + b"<" + rest.partition(b"<")[2]
        return body

    def _objects(self) -> dict[str, Any]:
        return dict(self._backend.buckets[self.bucket].keys.items())

    def _from_mount(self) -> None:
        there = {p.relative_to(self.mount).as_posix(): p for p in self.mount.rglob("*") if p.is_file()}
        objects = self._objects()
        for key, path in there.items():
            if key not in objects or objects[key].size != path.stat().st_size or not self._equal(objects[key], path):
                self._backend.put_object(self.bucket, key, path.read_bytes())
        for key in objects.keys() - there.keys():
            self._backend.delete_object(self.bucket, key)

    def _equal(self, item: Any, path: Path) -> bool:
        etag = str(item.etag).strip('"')
        return "-" in etag or etag == hashlib.md5(path.read_bytes()).hexdigest()

    def _to_mount(self, method: str, key: str, query: dict[str, list[str]]) -> None:
        path = self.mount / key
        if method == "DELETE" and "uploadId" not in query:
            path.unlink(missing_ok=True)
        elif (method == "PUT" and "partNumber" not in query) or (method == "POST" and "uploadId" in query):
            item = self._objects().get(key)
            if item is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(item.value)
