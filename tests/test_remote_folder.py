"""
Datasets at s3://, on a real S3-protocol server: half-written ones are known, nothing is sent or fetched twice.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kidspeech.cli.main import main
from kidspeech.config import load_recipe
from kidspeech.dataset import build_dataset, load_dataset
from kidspeech.errors import DatasetError, StorageError
from kidspeech.models import create_model
from kidspeech.remote_folder import local_folder, upload

from corpora import Corpus

pytestmark = pytest.mark.integration
URL = "s3://kids/data"


class Server:
    """
    moto's S3, which notes each request and refuses files, not the marker, after so many.
    """

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        self.log: list[str] = []
        self.room = 10**9
        self._inner: Any = DomainDispatcherApplication(create_backend_app)
        self.http = make_server("127.0.0.1", 0, self._serve, threaded=True)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def _serve(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        name = environ["PATH_INFO"].removeprefix("/kids/data/")
        self.log.append(f"{environ['REQUEST_METHOD']} {name}")
        if name in self.sent()[self.room :]:
            start("403 Forbidden", [("Content-Type", "application/xml")])
            return [b"<Error><Code>AccessDenied</Code></Error>"]
        found: Iterable[bytes] = self._inner(environ, start)
        return found

    def sent(self) -> list[str]:
        """
        Return the files that were sent, in order, the marker left out.
        """
        return self._files("PUT", "POST")

    def fetched(self) -> list[str]:
        """
        Return the files that were read, the marker left out.
        """
        return self._files("GET")

    def _files(self, *methods: str) -> list[str]:
        requests = (line.split(" ", 1) for line in self.log)
        names = dict.fromkeys(name for method, name in requests if method in methods)
        return [name for name in names if "." in name and name != "files.json"]


@pytest.fixture(name="s3")
def _s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    pytest.importorskip("moto.server", reason="moto[server] plays S3")
    from moto.s3.models import s3_backends

    backend: Any = s3_backends["123456789012"]["aws"]
    backend.reset()
    backend.create_bucket("kids", "us-east-1")
    server = Server()
    for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    """
    Files in the shape of a dataset.
    """
    folder = tmp_path / "DATA"
    (folder / "train").mkdir(parents=True)
    for name, size in {"train/data.arrow": 300_000, "train/state.json": 10, "train.jsonl": 100, "prepare.json": 50}.items():
        (folder / name).write_bytes(bytes([len(name)]) * size)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """
    Return the files of *folder*.
    """
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_uploaded_is_fetched_once_and_sent_once(s3: Server, folder: Path) -> None:
    """
    The folder comes back to the byte; the second upload and the second fetch move nothing; a changed file alone is sent,
    one that is gone disappears, and the new content has a folder of its own.
    """
    upload(folder, URL)
    first = local_folder(URL)
    assert content(first) == content(folder)
    s3.log.clear()
    upload(folder, URL)
    assert local_folder(URL) == first
    assert (s3.sent(), s3.fetched()) == ([], [])

    (folder / "prepare.json").write_text("another")
    (folder / "train.jsonl").unlink()
    upload(folder, URL)
    second = local_folder(f"{URL}/")
    assert s3.sent() == ["prepare.json"]
    assert content(second) == content(folder)
    assert "train.jsonl" in content(first)


@pytest.mark.parametrize("arrived", range(4))
def test_a_broken_upload_is_known_and_goes_on_with_what_is_missing(arrived: int, s3: Server, folder: Path) -> None:
    """
    Whenever it stops nobody reads half of it, and the next upload sends the files that had not arrived.
    """
    s3.room = arrived
    with pytest.raises(StorageError, match="can't write s3://kids/data"):
        upload(folder, URL)
    with pytest.raises(DatasetError, match=r"no dataset at|half written"):
        local_folder(URL)
    before = set(s3.sent()[:arrived])
    s3.room = 10**9
    s3.log.clear()
    upload(folder, URL)

    assert set(s3.sent()) == set(content(folder)) - before
    assert content(local_folder(URL)) == content(folder)


def test_an_update_that_breaks_off_hides_the_old_dataset_too(s3: Server, folder: Path) -> None:
    """
    Some files are new and some are old: that is neither dataset.
    """
    upload(folder, URL)
    (folder / "train/data.arrow").write_bytes(b"new" * 1000)
    (folder / "prepare.json").write_text("another")
    s3.log.clear()
    s3.room = 1
    with pytest.raises(StorageError):
        upload(folder, URL)

    with pytest.raises(DatasetError, match="half written"):
        local_folder(URL)


def test_a_damaged_file_is_not_taken(s3: Server, folder: Path, cache: Path) -> None:
    """
    A file that is not what the marker says is named, and nothing of the folder is left in the cache.
    """
    upload(folder, URL)
    from moto.s3.models import s3_backends

    s3_backends["123456789012"]["aws"].put_object("kids", "data/train.jsonl", b"x" * 100)

    with pytest.raises(DatasetError, match=r"data/train.jsonl is not what files.json says"):
        local_folder(URL)
    assert not [path for path in (cache / "fetched").rglob("*") if path.suffix != ".lock"]


def test_what_is_no_dataset_is_refused(s3: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A folder of other files is not written into, a marker may not point outside, and a missing bucket and server are told.
    """
    from moto.s3.models import s3_backends

    backend: Any = s3_backends["123456789012"]["aws"]
    backend.put_object("kids", "mine/thesis.pdf", b"x")
    evil = {"complete": True, "files": {"../../evil": {"size": 1, "md5": "x"}}, "prepared": ""}
    backend.put_object("kids", "evil/files.json", json.dumps(evil).encode())

    with pytest.raises(DatasetError, match="holds files and is no prepared dataset"):
        upload(folder, "s3://kids/mine")
    with pytest.raises(DatasetError, match="lies outside the dataset"):
        local_folder("s3://kids/evil")
    with pytest.raises(DatasetError, match=r"no dataset at s3://none/data"):
        local_folder("s3://none/data")
    with pytest.raises(StorageError, match="can't write s3://none/data"):
        upload(folder, "s3://none/data")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(DatasetError, match=r"can't read s3://kids/data.*check the URL, its keys and the network"):
        local_folder(URL)


def test_prepare_writes_a_url_and_train_and_inspect_read_it(
    s3: Server, recipe_file: Path, corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    Through the functions and commands that users call; a second prepare with nothing changed sends nothing.
    """
    recipe = load_recipe(recipe_file)
    prepared = build_dataset(recipe, [corpus.manifest], corpus.audio_dirs, URL)
    s3.log.clear()
    build_dataset(recipe, [corpus.manifest], corpus.audio_dirs, URL)
    assert s3.sent() == []

    train, validation, found = load_dataset(URL, create_model(recipe.model))
    assert found == prepared
    assert len(train) + len(validation) == 27
    with pytest.raises(SystemExit) as left:
        main(["inspect", URL, "--json"])
    assert left.value.code == 0
    assert json.loads(capsys.readouterr().out)["total"]["utterances"] == 27
