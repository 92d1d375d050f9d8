"""
A RunPod on this machine, and a project that uses it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kidspeech.runpod.api import RunPod
from kidspeech.runpod.clock import Timing
from kidspeech.runpod.launch import Outcome, run
from kidspeech.runpod.plan import Order, make_plans
from kidspeech.runpod.settings import Settings, load_settings

from .fake_api import KEY, VOLUME, FakeRunPod
from .fake_pod import MISSING
from .s3_quirks import ACCESS, S3, SECRET

QUICK = Timing(poll=0.2, ready=60, setup=120, gone=30, visible=30, lost=30, watch=1)
"""Polls often; how long things may take is generous, because this machine may be busy, and idle is the real one."""
PROMISE = 300  # seconds within which a pod for which there is nothing left to do costs nothing


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """
    Mark what lies in this folder; the hook is given the tests of all others too.
    """
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("pod")


@pytest.fixture(scope="session")
def needs_pod() -> None:
    """
    Skip where this machine can't play a pod; in CI, which installs what is needed, that is a failure.
    """
    if MISSING and os.environ.get("CI"):
        pytest.fail(f"CI must install {', '.join(MISSING)}")
    if MISSING:
        pytest.skip(f"a pod needs {', '.join(MISSING)} on this machine")


@pytest.fixture(scope="session")
def ssh_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    Make the user's key pair.
    """
    key = tmp_path_factory.mktemp("ssh") / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "child", "-f", str(key)], check=True)
    return key


@pytest.fixture
def short() -> Iterator[Path]:
    """
    Make a folder with a short name: a path of tmux's socket has 108 bytes.
    """
    folder = Path(tempfile.mkdtemp(prefix="ks", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cloud(needs_pod: None, short: Path, request: pytest.FixtureRequest) -> Iterator[FakeRunPod]:
    """
    Start the service. At the end, whatever the test did, no request or answer may contradict RunPod's document, and no pod
    may have cost money for longer than promised after there was nothing left to do for it.
    """
    with FakeRunPod(short) as service:
        yield service
        write_ledger(request.node.name, service)
    assert service.wrong == []
    assert [e for e in service.ledger if service.over and e.ended and e.ended - service.over > PROMISE] == []


def write_ledger(test: str, service: FakeRunPod) -> None:
    """
    Append the ledger to the file that tests/bench/ledger.py names, for its table.
    """
    if not (file := os.environ.get("KIDSPEECH_LEDGER")):
        return
    over = service.over or service.now()
    lives = [(e.by, e.ended - e.began, max(0.0, e.ended - over)) for e in service.ledger if e.ended]
    with Path(file).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"test": test, "lives": lives, "alive": len(service.alive())}) + "\n")


@pytest.fixture
def s3(cloud: FakeRunPod) -> Iterator[S3]:
    """
    Put the S3 server before the service's volume.
    """
    pytest.importorskip("moto.server", reason="moto[server] plays the volume's S3")
    with S3(VOLUME, cloud.mount) as server:
        yield server


def typed(*words: str) -> list[str]:
    """
    Return the argument list of a kidspeech command.
    """
    return [sys.executable, "-c", "from kidspeech.cli.main import main; main()", *words]


def kidspeech(project: Project, *words: str) -> subprocess.CompletedProcess[str]:
    """
    Type a command in the project's folder.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    return subprocess.run(
        typed(*words), cwd=project.folder, capture_output=True, text=True, env=environment, check=False, timeout=1800
    )


def wait_until(seen: Callable[[], object], seconds: float = 120.0) -> None:
    """
    Wait for something that surely comes, however busy this machine is.
    """
    end = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < end, f"not seen within {seconds:g} s"
        time.sleep(0.05)


@dataclass
class Project:
    """
    A user's folder with settings and a prepared dataset.
    """

    cloud: FakeRunPod
    folder: Path
    timing: Timing = QUICK
    lines: list[str] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)
    after: Callable[[str], None] = lambda _: None
    """Called with each stage and each line of the log: where faults come from."""

    @property
    def settings(self) -> Settings:
        return load_settings(self.folder / ".runpod.env", {})

    def order(self, **more: object) -> Order:
        defaults = {
            "recipe": str(self.folder / "tiny.yaml"),
            "data": self.folder / "data",
            "out": self.folder / "runs" / "r1",
            "max_hours": 1.0,
        }
        return Order(**{**defaults, **more})  # type: ignore[arg-type]

    def train(self, *, detach: bool = False, **more: object) -> Outcome:
        settings = self.settings
        with RunPod(settings.api_key, settings.api_url) as api:
            plans = make_plans(self.order(**more), settings, api)
            try:
                return run(plans, api, detach=detach, progress=self._progress, on_line=self._line, timing=self.timing)
            finally:
                self.cloud.over = 0.0 if detach else self.cloud.now()

    def with_s3(self, server: S3) -> None:
        """
        Give the project S3 keys.
        """
        with (self.folder / ".runpod.env").open("a") as file:
            file.write(f"AWS_ACCESS_KEY_ID={ACCESS}\nAWS_SECRET_ACCESS_KEY={SECRET}\nRUNPOD_S3_ENDPOINT={server.url}\n")

    def starts(self, run_name: str = "r1") -> list[str]:
        file = self.cloud.mount / "kidspeech" / "runs" / f"{run_name}.starts"
        return file.read_text().splitlines() if file.exists() else []

    def train_for_long(self) -> None:
        """
        Let trainings that begin from now on last until something ends them.
        """
        self.cloud.image.behaviour.write_text("steps=10000\ndelay=0.2\n")

    def train_to_the_end(self) -> None:
        """
        Let trainings that begin from now on end soon, after a few more steps.
        """
        done = [int(path.name[5:]) for path in (self.cloud.mount / "kidspeech/runs/r1").glob("step-*")]
        self.cloud.image.behaviour.write_text(f"steps={max(done, default=0) + 5}\ndelay=0.1\n")

    def leave_alone(self) -> None:
        """
        Wait until nothing is at work in the pods, let the idle time go by, and see that their watchdogs end them.
        """
        wait_until(lambda: not self.cloud.in_use())
        self.cloud.over = self.cloud.now()
        self.cloud.pass_time(self.timing.idle)
        wait_until(lambda: self.cloud.alive() == [])

    def _progress(self, stage: str, done: float, total: float, note: str = "") -> None:
        self.stages.append(f"{stage} {note}".strip())
        self.after(stage)

    def _line(self, line: str) -> None:
        self.lines.append(line)
        self.after(line)


@pytest.fixture
def project(cloud: FakeRunPod, short: Path, ssh_key: Path, caplog: pytest.LogCaptureFixture) -> Project:
    """
    Write .runpod.env and a dataset of three files.
    """
    caplog.set_level(logging.DEBUG, "kidspeech")
    return make_project(cloud, short / "project", ssh_key)


def make_project(cloud: FakeRunPod, folder: Path, ssh_key: Path) -> Project:
    """
    Make a user's folder.
    """
    (folder / "data" / "train").mkdir(parents=True)
    (folder / "data" / "train" / "0000.arrow").write_bytes(os.urandom(300_000))
    (folder / "data" / "val.arrow").write_bytes(b"v" * 1000)
    (folder / "data" / "dataset.json").write_text(json.dumps({"clips": 3}))
    (folder / "tiny.yaml").write_text("model: {}\n")
    env = folder / ".runpod.env"
    env.touch(mode=0o600)
    env.write_text(
        f"RUNPOD_API_KEY={KEY}\nNETWORK_VOLUME_ID={VOLUME}\nPOD_ID=   # written back\nSSH_KEY_PATH={ssh_key}\n"
        f'GPU_TYPE="NVIDIA GeForce RTX 4090, NVIDIA L40S"\nRUNPOD_API_URL={cloud.url}\nRUNPOD_MOUNT={cloud.mount}\n'
    )
    return Project(cloud, folder)
