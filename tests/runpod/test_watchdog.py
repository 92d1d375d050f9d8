"""
The watchdog alone: a script that must end a pod whatever else is broken.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from kidspeech.runpod.pods import script

pytestmark = pytest.mark.integration
KEY = "podkey-SECRET"


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

    def asked(self, seconds: float) -> list[str]:
        end = time.monotonic() + seconds
        while not self.calls.exists() and time.monotonic() < end:
            time.sleep(0.05)
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def container(needs_pod: None, tmp_path: Path) -> Container:
    return Container(tmp_path)


def test_ends_an_idle_pod_without_showing_its_key(container: Container) -> None:
    """
    The request is RunPod's, and the key goes by stdin, never as an argument.
    """
    with container.watched(KIDSPEECH_IDLE="1"):
        asked = container.asked(6)
    assert '{"action": "terminate"}' in asked[0]
    assert "http://127.0.0.1:9/v2/pods/pod1/action" in asked[0]
    assert KEY not in asked[0]
    assert KEY in (container.folder / "stdin").read_text()


def test_leaves_a_pod_that_is_used(container: Container) -> None:
    """
    Whoever holds in-use.lock keeps the pod, and not a second longer than the idle time.
    """
    (container.folder / ".kidspeech").mkdir()
    user = subprocess.Popen(["flock", "-s", str(container.folder / ".kidspeech" / "in-use.lock"), "sleep", "4"])
    with container.watched(KIDSPEECH_IDLE="2"):
        assert container.asked(3) == []
        assert container.asked(6)
    user.wait()


@pytest.mark.parametrize(
    "limit", [{"KIDSPEECH_DEADLINE": str(int(time.time()) - 1)}, {"KIDSPEECH_SECONDS": "1"}], ids=["deadline", "uptime"]
)
def test_the_deadline_ends_also_a_pod_that_is_used(container: Container, limit: dict[str, str]) -> None:
    """
    By the calendar, or by the machine's uptime where its clock is not to be trusted.
    """
    (container.folder / ".kidspeech").mkdir()
    user = subprocess.Popen(["flock", "-s", str(container.folder / ".kidspeech" / "in-use.lock"), "sleep", "6"])
    with container.watched(KIDSPEECH_IDLE="60", **limit):
        assert container.asked(5)
    user.terminate()
    user.wait()


def test_tries_again_and_by_other_ways(container: Container) -> None:
    """
    An API that does not take it is asked again, with runpodctl's two dialects in between.
    """
    container.program("curl", f"echo curl >>{container.calls}; exit 22")
    container.program("runpodctl", f'echo "runpodctl $*" >>{container.calls}; exit 1')
    with container.watched(KIDSPEECH_IDLE="1"):
        container.asked(6)
        time.sleep(2.5)
    asked = container.calls.read_text().splitlines()
    assert asked[:4] == ["curl", "runpodctl stop pod pod1", "runpodctl pod stop pod1", "curl"]


def test_one_is_enough(container: Container) -> None:
    """
    The second one leaves, so that a controller may always start one.
    """
    with container.watched(KIDSPEECH_IDLE="60"):
        while not (container.folder / ".kidspeech" / "watchdog.log").exists():
            time.sleep(0.05)
        with container.watched(KIDSPEECH_IDLE="60") as second:
            assert second.wait(5) == 0
