"""
The whole way as a user types it: kidspeech train … --remote runpod, with a real training on a pod of this machine.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .conftest import Project
from .fake_api import KEY
from .s3_quirks import ACCESS, S3, SECRET
from corpora import Corpus

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def kidspeech(project: Project, *words: str) -> subprocess.CompletedProcess[str]:
    """
    Type a command in the project's folder.
    """
    return subprocess.run(
        [sys.executable, "-c", "from kidspeech.cli.main import main; main()", *words],
        cwd=project.folder,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200"},
        check=False,
    )


@contextmanager
def seen_arguments() -> Iterator[set[str]]:
    """
    Collect the command lines of all processes while the block runs: what `ps` shows to everybody.
    """
    seen: set[str] = set()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen.add(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
                except OSError:
                    continue
            time.sleep(0.05)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()


@pytest.mark.parametrize("way", ["rsync", "s3"])
def test_trains_for_real(
    way: str, project: Project, corpus: Corpus, recipe_file: Path, request: pytest.FixtureRequest
) -> None:
    """
    One command prepares nothing by itself, trains on the pod, fetches a checkpoint that predicts, and ends the pod.

    What the run leaves behind anywhere - volume, pod, project, output, requests, process list - holds no key.
    """
    project.cloud.image.python_with_packages_of_tests()
    if way == "s3":
        server: S3 = request.getfixturevalue("s3")
        project.with_s3(server)
    prepared = ["prepare", str(recipe_file), "--manifest", str(corpus.manifest)]
    done = kidspeech(project, *prepared, *(w for d in corpus.audio_dirs for w in ("--audio-dir", str(d))), "--out", "DATA")
    assert done.returncode == 0, done.stderr
    words = ["train", str(recipe_file), "--data", "DATA", "--out", "RUN", "--remote", "runpod", "--max-hours", "1", "--yes"]
    with seen_arguments() as arguments:
        done = kidspeech(project, *words)
    assert done.returncode == 0, done.stderr
    result = json.loads((project.folder / "RUN" / "run.json").read_text())
    assert result["steps"] > 0
    assert (project.folder / "RUN" / "best" / "model.safetensors").is_file()
    assert any((project.folder / "RUN" / "tensorboard").rglob("events*"))
    assert re.search(r"at most \$0\.\d\d: 1 h", done.stderr)
    assert [entry.by for entry in project.cloud.ledger] == ["controller"]
    listed = kidspeech(project, "runpod", "status")
    assert "nothing is billed but the volume" in listed.stdout
    texts = {"output": done.stdout + done.stderr, "arguments": "\n".join(arguments), "requests": str(project.cloud.requests)}
    assert [name for name, text in texts.items() if leaks(text.encode())] == []
    assert [path for path in files_left(project) if leaks(path.read_bytes())] == []


def leaks(content: bytes) -> bool:
    """
    Tell whether a key is in there: the account's, S3's, or the pod's own.
    """
    return any(secret.encode() in content for secret in (KEY, SECRET, ACCESS, "podkey-"))


def files_left(project: Project) -> list[Path]:
    """
    Return all files of the volume, the pods and the project, but for the one that holds the keys.
    """
    found = [path for path in project.cloud.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in found if path.name != ".runpod.env"]
