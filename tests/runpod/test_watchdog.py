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
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from kidspeech.runpod.pods import script

from .conftest import wait_until
from .fake_pod import Image

pytestmark = pytest.mark.integration
KEY = "podkey-SECRET"


class Container:
    """
    A home folder, a PATH with a curl that writes down what it is asked, and the watchdog in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / "bin"
        self.calls, self.looks, self.lock = folder / "calls", folder / "looks", folder / ".kidspeech" / "in-use.lock"
        self.image = Image(folder)
        self.lock.parent.mkdir()
        self.image.program("curl", f'cat >>{folder}/stdin; echo "$@" >>{self.calls}')
        self.image.program("sleep", f"echo look >>{self.looks}; exec {shutil.which('sleep')} 0.05")

    @contextmanager
    def watched(self, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
        base = {"PATH": f"{self.bin}:{os.environ['PATH']}", "HOME": str(self.folder)}
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
        Be somebody who needs the pod.
        """
        with self.lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            yield

    def look(self) -> None:
        """
        Wait until the watchdog has looked around twice from now on: once it may have been at it.
        """
        before = len(lines(self.looks))
        wait_until(lambda: len(lines(self.looks)) >= before + 2)

    def asked(self, calls: int = 1) -> list[str]:
        """
        Return what the API and runpodctl were asked, once that is so many times.
        """
        wait_until(lambda: len(lines(self.calls)) >= calls)
        return lines(self.calls)


def lines(file: Path) -> list[str]:
    """
    Return the whole lines of a file that grows.
    """
    return file.read_text().split("\n")[:-1] if file.exists() else []


@pytest.fixture
def container(needs_pod: None, tmp_path: Path) -> Container:
    return Container(tmp_path)


def test_ends_an_idle_pod_without_showing_its_key(container: Container) -> None:
    """
    The request is RunPod's, and the key goes by stdin, never as an argument.
    """
    with container.watched(KIDSPEECH_IDLE="240"):
        container.look()
        assert lines(container.calls) == []
        container.image.pass_time(241)
        asked = container.asked()
    assert '{"action": "terminate"}' in asked[0]
    assert "http://127.0.0.1:9/v2/pods/pod1/action" in asked[0]
    assert KEY not in asked[0]
    assert KEY in (container.folder / "stdin").read_text()


def test_leaves_a_pod_that_is_used(container: Container) -> None:
    """
    Whoever holds in-use.lock keeps the pod, and from then on the idle time counts.
    """
    with container.watched(KIDSPEECH_IDLE="240"):
        with container.used():
            container.look()
            container.image.pass_time(1000)
            container.look()
        container.image.pass_time(1100)
        container.look()
        assert lines(container.calls) == []
        container.image.pass_time(1300)
        assert container.asked()


@pytest.mark.parametrize(
    "limit", [{"KIDSPEECH_DEADLINE": str(int(time.time()) - 1)}, {"KIDSPEECH_SECONDS": "3600"}], ids=["deadline", "uptime"]
)
def test_the_deadline_ends_also_a_pod_that_is_used(container: Container, limit: dict[str, str]) -> None:
    """
    By the calendar, or by the machine's uptime where its clock is not to be trusted.
    """
    with container.used(), container.watched(KIDSPEECH_IDLE="240", **limit):
        if "KIDSPEECH_SECONDS" in limit:
            container.look()
            assert lines(container.calls) == []
            container.image.pass_time(3600)
        assert container.asked()


def test_tries_again_and_by_other_ways(container: Container) -> None:
    """
    An API that does not take it is asked again, with runpodctl's two dialects in between.
    """
    container.image.program("curl", f"echo curl >>{container.calls}; exit 22")
    container.image.program("runpodctl", f'echo "runpodctl $*" >>{container.calls}; exit 1')
    with container.watched(KIDSPEECH_IDLE="0"):
        asked = container.asked(4)
    assert asked[:4] == ["curl", "runpodctl stop pod pod1", "runpodctl pod stop pod1", "curl"]


def test_one_is_enough(container: Container) -> None:
    """
    The second one leaves, so that a controller may always start one.
    """
    with container.watched(KIDSPEECH_IDLE="240"):
        container.look()
        with container.watched(KIDSPEECH_IDLE="240") as second:
            assert second.wait(60) == 0
