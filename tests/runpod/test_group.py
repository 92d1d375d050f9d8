"""
kidspeech runpod: each command against pods that run.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from kidspeech.cli.runpod import app
from kidspeech.errors import InputError
from kidspeech.runpod.api import RunPod
from kidspeech.runpod.pods import Fleet

from .conftest import QUICK, Project, kidspeech, typed, wait_until
from .fake_pod import free_port
from .s3_quirks import S3

pytestmark = pytest.mark.integration
Type = Callable[..., str]


@pytest.fixture(name="type_")
def _type(project: Project, monkeypatch: pytest.MonkeyPatch) -> Type:
    """
    Type a command of the group, and return its stdout.
    """

    @contextmanager
    def fleet_of(_: Path | None) -> Iterator[Fleet]:
        settings = project.settings
        with RunPod(settings.api_key, settings.api_url) as api:
            yield Fleet(settings, api, timing=QUICK)

    monkeypatch.setattr("kidspeech.cli.runpod.session.fleet_of", fleet_of)

    def type_(*words: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, list(words))
        if isinstance(done.exception, InputError) and not code:
            raise done.exception
        assert done.exit_code == code, (words, done.output, done.exception)
        return done.stdout

    return type_


def test_a_pods_life_by_hand(project: Project, type_: Type) -> None:
    """
    Up, look, push, list, clean, pause, resume, stop: the bill is open only in between.
    """
    type_("up", "--hours", "0.5", "--yes")
    assert len(project.cloud.alive()) == 1
    reports = json.loads(type_("status", "--json"))
    assert (reports[0]["status"], reports[0]["run"], reports[0]["training"]) == ("RUNNING", "up", "idle")
    assert 0 < reports[0]["hours_left"] <= 0.6
    type_("push", str(project.folder / "data"))
    assert (project.cloud.mount / "kidspeech/data/data/train/0000.arrow").is_file()
    assert "kidspeech/data/data/val.arrow" in type_("ls", "kidspeech/data/data")
    type_("clean", "kidspeech/data/data/train", "--yes")
    assert not (project.cloud.mount / "kidspeech/data/data/train").exists()
    type_("clean", "elsewhere", "--yes", code=1)
    type_("pause")
    assert project.cloud.alive() == []
    type_("resume")
    assert len(project.cloud.alive()) == 1
    type_("stop")
    assert project.cloud.alive() == []
    assert "nothing is billed" in type_("status")


@pytest.mark.slow
def test_a_training_seen_from_outside(project: Project, type_: Type) -> None:
    """
    Its log, its checkpoint so far, and a stop that lets it save.
    """
    project.train_for_long()
    project.train(detach=True)
    log = project.cloud.mount / "kidspeech/jobs/r1/logs/current.log"
    wait_until(lambda: "step 1 loss" in log.read_text())
    assert "step 1 loss" in type_("logs")
    assert json.loads(type_("status", "--json"))[0]["training"] == "running"
    type_("stop", "--run", "r1")
    assert project.cloud.alive() == []
    end = json.loads((project.cloud.mount / "kidspeech/jobs/r1/job.json").read_text())
    assert end["code"] != 0


def test_reap_ends_only_what_is_past_its_deadline(project: Project, type_: Type) -> None:
    """
    The third belt: pods of this project that a dead watchdog and a dead laptop left behind.
    """
    project.train_for_long()
    pod = project.train(detach=True).pod
    assert json.loads(type_("reap", "--yes", "--json")) == []
    project.cloud.pods[pod]["env"]["KIDSPEECH_DEADLINE"] = "1000"
    assert json.loads(type_("reap", "--yes", "--json")) == [pod]
    assert project.cloud.alive() == []


def test_doctor_and_gpus(project: Project, type_: Type, s3: S3) -> None:
    """
    Everything that can be checked for free, for people and scripts; a wrong key is found and named.
    """
    project.with_s3(s3)
    checks: list[dict[str, Any]] = json.loads(type_("doctor", "--json"))
    assert all(check["good"] for check in checks), checks
    assert json.loads(type_("gpus", "--json"))[0] == {
        "id": "NVIDIA A40",
        "data_center": "EU-RO-1",
        "gb": 24,
        "dollars": 0.4,
        "stock": "HIGH",
    }
    file = project.folder / ".runpod.env"
    file.write_text(file.read_text().replace("RUNPOD_API_KEY=", "RUNPOD_API_KEY=wrong_"))
    bad = {check["name"] for check in json.loads(type_("doctor", "--json", code=1)) if check["good"] is False}
    assert "API key and volume" in bad
    assert project.cloud.ledger == []


@pytest.mark.parametrize("command", ["pause", "stop", "terminate"])
@pytest.mark.parametrize("whose", ["another program's", "another project's"])
def test_pods_of_others_are_left_alone(command: str, whose: str, project: Project, type_: Type) -> None:
    """
    One on our volume that kidspeech did not make, and one that it made for another volume.
    """
    pod = project.cloud.add_pod("notebook" if whose == "another program's" else "kidspeech-theirs-1234", whose)
    with pytest.raises(InputError, match="is not this project's, and kidspeech leaves it alone"):
        type_(command)
    assert project.cloud.alive() == [pod]
    assert json.loads(type_("status", "--json")) == []


def test_a_pod_of_ones_own_is_stopped_and_never_deleted(project: Project, type_: Type) -> None:
    """
    POD_ID may name a pod that kidspeech did not make: what is on its disk is the user's.
    """
    pod = project.cloud.add_pod("notebook")
    file = project.folder / ".runpod.env"
    file.write_text(file.read_text().replace("POD_ID=", f"POD_ID={pod}"))
    with pytest.raises(InputError, match="was not made by kidspeech"):
        type_("terminate")
    assert project.cloud.alive() == [pod]
    type_("stop")
    assert project.cloud.alive() == []
    assert project.cloud.pods[pod]["status"] == "EXITED"


@pytest.mark.slow
def test_the_log_is_followed_to_its_end(project: Project) -> None:
    """
    `logs -f` prints what was there, what comes, and returns when the training ends.
    """
    project.cloud.image.behaviour.write_text("steps=12\ndelay=0.3\n")
    project.train(detach=True)
    done = kidspeech(project, "runpod", "logs", "-f")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("step")] == [str(step) for step in range(1, 13)]
    assert lines[-1] == "done"
    assert "\x1b" not in done.stdout


@pytest.mark.slow
def test_the_curves_come_through_a_tunnel(project: Project) -> None:
    """
    A real TensorBoard answers at the address that is printed, until Ctrl-C.
    """
    project.cloud.image.python_without_installing(f'test "$2" = pip || exec {sys.executable} "$@"')
    project.train_for_long()
    project.train(detach=True)
    # a shell's background jobs ignore Ctrl-C, and so would all that they start
    command = ["env", "--default-signal=INT", *typed("runpod", "tensorboard", "--port", str(free_port()))]
    with subprocess.Popen(command, cwd=project.folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        wait_until(lambda: answers(address))
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert not answers(address)


def answers(address: str) -> bool:
    """
    Tell whether a TensorBoard is there.
    """
    try:
        return "TensorBoard" in httpx.get(address, timeout=30).text
    except httpx.HTTPError:
        return False


@pytest.mark.slow
def test_doctor_live_checks_every_statement(project: Project, type_: Type, s3: S3) -> None:
    """
    On one pod, which ends; torch with CUDA and the environment of process 1 are what this machine can't play.
    """
    project.with_s3(s3)
    project.cloud.container = {"FAKE_SESSION_ENV": "1"}
    checks = json.loads(type_("doctor", "--live", "--yes", "--json", code=1))
    live = {check["name"].partition(":")[0]: check["good"] for check in checks if ":" in check["name"]}
    assert [name for name, good in live.items() if not good] == ["torch", "environ"], checks
    assert project.cloud.alive() == []
