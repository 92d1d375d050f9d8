"""
The watchdog alone: a script that must end a pod whatever else is broken.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from kidspeech.runpod.pods import script

pytestmark = pytest.mark.integration
KEY = "podkey-SECRET"
PATIENCE = 120  # seconds: what takes longer never comes


class Container:
    """
    A home folder, a PATH with a curl that writes down what it is asked, and the watchdog in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin, self.calls = folder, folder / "bin", folder / "calls"
        self.bin.mkdir()
        self.program("curl", f'cat >>{folder}/stdin; echo "$@" >>{self.calls}')

    def program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(f"#!/bin/bash\n{text}\n")
        (self.bin / name).chmod(0o755)

    @contextmanager
    def watched(self, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
        base = {"PATH": f"{self.bin}:{os.environ['PATH']}", "HOME": str(self.folder), "KIDSPEECH_WATCH": "1"}
        own = {"RUNPOD_API_KEY": KEY, "RUNPOD_POD_ID": "pod1", "KIDSPEECH_API": "http://127.0.0.1:9/v2"}
        argv = ["bash", "-c", script("watchdog.sh")]
        process = subprocess.Popen(argv, env={**base, **own, **environment}, start_new_session=True)
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()

    @contextmanager
    def used(self) -> Iterator[None]:
        """
        Hold in-use.lock, as whoever needs the pod does.
        """
        (self.folder / ".kidspeech").mkdir(exist_ok=True)
        with (self.folder / ".kidspeech" / "in-use.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            yield

    def asked(self, count: int = 1) -> list[str]:
        """
        Wait until curl and runpodctl were called *count* times, and return what they were asked.
        """
        return self._lines(self.calls, count)

    def looks(self, count: int) -> None:
        """
        Wait until the watchdog has looked *count* times, a second apart, whether the pod is needed.
        """
        self.program("date", f'echo >>{self.folder}/looks; exec {shutil.which("date")} "$@"')
        (self.folder / "looks").unlink(missing_ok=True)
        self._lines(self.folder / "looks", count)

    def _lines(self, file: Path, count: int) -> list[str]:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            lines = file.read_text().splitlines(keepends=True) if file.exists() else []
            if len(lines) >= count and lines[-1].endswith("\n"):
                return [line.rstrip("\n") for line in lines]
            time.sleep(0.05)
        raise AssertionError(f"{file.name} has fewer than {count} lines after {PATIENCE} s")


@pytest.fixture
def container(needs_pod: None, tmp_path: Path) -> Container:
    return Container(tmp_path)


def test_ends_an_idle_pod_without_showing_its_key(container: Container) -> None:
    """
    The request is RunPod's, and the key goes by stdin, never as an argument.
    """
    with container.watched(KIDSPEECH_IDLE="1"):
        asked = container.asked()
    assert '{"action": "terminate"}' in asked[0]
    assert "http://127.0.0.1:9/v2/pods/pod1/action" in asked[0]
    assert KEY not in asked[0]
    assert KEY in (container.folder / "stdin").read_text()


def test_leaves_a_pod_that_is_used(container: Container) -> None:
    """
    Whoever holds in-use.lock keeps the pod for as long as it is held, and no longer than the idle time after.
    """
    with ExitStack() as user:
        user.enter_context(container.used())
        with container.watched(KIDSPEECH_IDLE="2"):
            container.looks(5)  # for twice the idle time
            assert not container.calls.exists()
            user.close()
            assert container.asked()


@pytest.mark.parametrize(
    "limit", [{"KIDSPEECH_DEADLINE": str(int(time.time()) - 1)}, {"KIDSPEECH_SECONDS": "1"}], ids=["deadline", "uptime"]
)
def test_the_deadline_ends_also_a_pod_that_is_used(container: Container, limit: dict[str, str]) -> None:
    """
    By the calendar, or by the machine's uptime where its clock is not to be trusted.
    """
    with container.used(), container.watched(KIDSPEECH_IDLE="60", **limit):
        assert container.asked()


def test_tries_again_and_by_other_ways(container: Container) -> None:
    """
    An API that does not take it is asked again, with runpodctl's two dialects in between.
    """
    container.program("curl", f"echo curl >>{container.calls}; exit 22")
    container.program("runpodctl", f'echo "runpodctl $*" >>{container.calls}; exit 1')
    with container.watched(KIDSPEECH_IDLE="1"):
        asked = container.asked(4)
    assert asked[:4] == ["curl", "runpodctl stop pod pod1", "runpodctl pod stop pod1", "curl"]


def test_one_is_enough(container: Container) -> None:
    """
    The second one leaves, so that a controller may always start one.
    """
    with container.watched(KIDSPEECH_IDLE="60"):
        container.looks(1)
        with container.watched(KIDSPEECH_IDLE="60") as second:
            assert second.wait(PATIENCE) == 0
