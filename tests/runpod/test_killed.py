"""
The laptop dies at each of the seven steps: closed and started again, or closed for good.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Project

pytestmark = [pytest.mark.integration, pytest.mark.slow]
STEPS = ("1/7", "2/7", "3/7", "4/7", "5/7", "6/7", "7/7")


def start(project: Project, last: str = "") -> subprocess.Popen[str]:
    """
    Start a controller in a process of its own.
    """
    command = [sys.executable, "-u", str(Path(__file__).with_name("controller.py")), str(project.folder), last]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def kill_at(project: Project, step: str, number: int = signal.SIGKILL) -> None:
    """
    Run a controller until it says *step*, and kill it there with all of its children.
    """
    process = start(project, step)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(step):
            break
    os.killpg(process.pid, number)
    process.stdout.close()
    process.wait()


@pytest.mark.parametrize("step", STEPS)
def test_started_again_it_ends_as_if_nothing_had_been(step: str, project: Project) -> None:
    """
    The second call finds the pod, the training or the result of the first; nothing trains twice, nothing stays.
    """
    project.cloud.image.behaviour.write_text("steps=6\ndelay=0.2\n")
    kill_at(project, step)
    project.train()
    assert (project.folder / "runs" / "r1" / "run.json").is_file()
    assert len(project.cloud.ledger) == 1
    assert project.cloud.alive() == []
    assert "DOUBLE" not in project.starts()
    assert len(project.starts()) == 1


@pytest.mark.parametrize("step", ["3/7", "4/7", "5/7", "6/7", "7/7"])
def test_closed_for_good_the_pod_ends_itself(step: str, project: Project) -> None:
    """
    With nobody left, the watchdog ends the pod four minutes later; where a training runs, after it.
    """
    project.cloud.image.behaviour.write_text("steps=6\ndelay=0.2\n")
    kill_at(project, step)
    project.leave_alone()
    assert {entry.by for entry in project.cloud.ledger} <= {"watchdog"}
    if step in {"6/7", "7/7"}:
        assert (project.cloud.mount / "kidspeech" / "jobs" / "r1" / "job.json").is_file()


def test_killed_within_the_create_it_finds_its_pod(project: Project) -> None:
    """
    A pod whose creation nobody heard of is found by the run's name in its environment.
    """
    process = start(project)
    project.cloud.on_create = lambda _: os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
    project.cloud.on_create = lambda _: None
    assert len(project.cloud.ledger) == 1
    assert project.settings.pod_id == ""
    project.train()
    assert len(project.cloud.ledger) == 1
    assert project.cloud.alive() == []
