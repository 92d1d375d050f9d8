"""
The whole way as a user types it: kidspeech train … --remote runpod, with a real training on a pod of this machine.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import traceback
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from kidspeech.cli.demo import GOOD
from kidspeech.errors import KidspeechError

from .conftest import Project, kidspeech
from .fake_api import KEY, Fault
from .s3_quirks import ACCESS, S3, SECRET
from corpora import Corpus

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@contextmanager
def seen_processes() -> Iterator[dict[str, set[str]]]:
    """
    Collect what `ps` and /proc show of all processes while the block runs: their command lines and environments.
    """
    seen: dict[str, set[str]] = {"cmdline": set(), "environ": set()}
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            for kind, found in seen.items():
                for file in Path("/proc").glob(f"[0-9]*/{kind}"):
                    with suppress(OSError):
                        found.add(file.read_bytes().decode(errors="replace"))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()


def test_the_demo_trains_on_a_pod_by_one_command(project: Project) -> None:
    """
    Nothing but the recipe's name: its corpus is prepared here and pushed by rsync, and a second call needs no pod.
    """
    project.cloud.image.python_with_packages_of_tests()
    with seen_processes() as seen:
        done = kidspeech(project, "train", "demo", "--remote", "runpod", "--yes")
    assert done.returncode == 0, done.stderr
    assert json.loads((project.folder / "runs/demo/run.json").read_text())["best_wer"] < GOOD
    assert (project.folder / "data/demo/validation.jsonl").is_file()
    assert f"checkpoint: {Path('runs/demo/best')}" in done.stderr
    assert f"at most ${0.86 * (12 + 5 / 60):.2f}: 12 h" in done.stderr
    check_left(project, done, seen)


def test_trains_for_real_over_s3(project: Project, corpus: Corpus, recipe_file: Path, s3: S3) -> None:
    """
    With a recipe and a dataset of one's own, and S3 keys: a checkpoint comes home, and a pod was needed only to train.
    """
    project.cloud.image.python_with_packages_of_tests()
    project.with_s3(s3)
    done = kidspeech(project, "prepare", str(recipe_file), *corpus.options(), "--out", "DATA")
    assert done.returncode == 0, done.stderr
    words = ["train", str(recipe_file), "--data", "DATA", "--out", "RUN", "--remote", "runpod", "--max-hours", "1", "--yes"]
    with seen_processes() as seen:
        done = kidspeech(project, *words)
    assert done.returncode == 0, done.stderr
    assert json.loads((project.folder / "RUN" / "run.json").read_text())["steps"] > 0
    assert (project.folder / "RUN" / "best" / "model.safetensors").is_file()
    assert any((project.folder / "RUN" / "tensorboard").rglob("events*"))
    assert re.search(r"at most \$0\.\d\d: 1 h", done.stderr)
    check_left(project, done, seen)


def check_left(project: Project, done: subprocess.CompletedProcess[str], seen: dict[str, set[str]]) -> None:
    """
    The pod has ended, and no key is in anything that the run showed or left: output, requests (the pod's environment
    is in them), processes, volume with its wheel, pod, project.
    """
    assert [entry.by for entry in project.cloud.ledger] == ["controller"]
    assert "nothing is billed but the volume" in kidspeech(project, "runpod", "status").stdout
    texts = {"output": done.stdout + done.stderr, "requests": str(project.cloud.requests), "ps": "\n".join(seen["cmdline"])}
    assert [name for name, text in texts.items() if leaks(text.encode())] == []
    assert any("kidspeech" in line for line in seen["cmdline"])
    here = f"KIDSPEECH_CACHE={os.environ['KIDSPEECH_CACHE']}\0"  # this test's: others beside it give keys to their processes
    own = [text for text in seen["environ"] if here in text and "FAKE_POD=" not in text]  # a container has its own pod's key
    assert own
    assert not leaks("\n".join(own).encode())
    contents = dict(files_left(project))
    assert any(".whl/kidspeech/cli/" in name for name in contents)
    assert [name for name, content in contents.items() if leaks(content)] == []


@pytest.mark.parametrize("broken", ["401", "402", "no service", "s3"])
def test_a_traceback_shows_no_key(broken: str, project: Project, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Not even one with the values of all variables in it, as error trackers send them.
    """
    project.with_s3(s3)
    break_service(project, s3, broken)
    monkeypatch.setattr("kidspeech.runpod.api._pauses", lambda: [0.1, None])
    with pytest.raises(KidspeechError) as raised:
        project.train()
    deep = traceback.TracebackException.from_exception(raised.value, capture_locals=True)
    text = "".join(deep.format())
    assert "settings = " in text
    assert not leaks(text.encode())


def break_service(project: Project, s3: S3, broken: str) -> None:
    """
    Make everything that is asked fail in one way.
    """
    if broken == "no service":
        file = project.folder / ".runpod.env"
        file.write_text(file.read_text().replace(project.cloud.url, "http://127.0.0.1:9/v2"))
    elif broken == "s3":
        s3.quirks.status = [400] * 100
    else:
        project.cloud.faults.append(Fault(*(("GET", ".*") if broken == "401" else ("POST", "/pods")), int(broken), times=99))


def leaks(content: bytes) -> bool:
    """
    Tell whether a key is in there: the account's, S3's, the pod's own, or the private half of the one for ssh.
    """
    return any(secret.encode() in content for secret in (KEY, SECRET, ACCESS, "podkey-", "PRIVATE KEY"))


def files_left(project: Project) -> Iterator[tuple[str, bytes]]:
    """
    Yield all files of the volume, the pods and the project by name, and those in wheels; not those that hold the keys.
    """
    for path in project.cloud.folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.name not in {".runpod.env", "host_key"}:
            yield str(path), path.read_bytes()
            if path.suffix == ".whl":
                with zipfile.ZipFile(path) as wheel:
                    yield from ((f"{path}/{name}", wheel.read(name)) for name in wheel.namelist())
