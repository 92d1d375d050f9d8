"""
A RunPod on this machine, and a project that uses it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kidspeech.runpod.api import RunPod
from kidspeech.runpod.clock import Timing
from kidspeech.runpod.launch import Outcome, run
from kidspeech.runpod.plan import Order, make_plan
from kidspeech.runpod.settings import Settings, load_settings

from .fake_api import KEY, VOLUME, FakeRunPod
from .fake_pod import MISSING
from .s3_quirks import ACCESS, S3, SECRET

QUICK = Timing(poll=0.2, ready=20, setup=60, gone=10, visible=10, lost=10, idle=20, watch=1)


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
def cloud(needs_pod: None, short: Path) -> Iterator[FakeRunPod]:
    """
    Start the service. At the end, whatever the test did, no request or answer may contradict RunPod's document.
    """
    with FakeRunPod(short) as service:
        yield service
    assert service.wrong == []


@pytest.fixture
def s3(cloud: FakeRunPod) -> Iterator[S3]:
    """
    Put the S3 server before the service's volume.
    """
    pytest.importorskip("moto.server", reason="moto[server] plays the volume's S3")
    with S3(VOLUME, cloud.mount) as server:
        yield server


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
            plan = make_plan(self.order(**more), settings, api)
            return run(plan, api, detach=detach, progress=self._progress, on_line=self._line, timing=self.timing)

    def with_s3(self, server: S3) -> None:
        """
        Give the project S3 keys.
        """
        with (self.folder / ".runpod.env").open("a") as file:
            file.write(f"AWS_ACCESS_KEY_ID={ACCESS}\nAWS_SECRET_ACCESS_KEY={SECRET}\nRUNPOD_S3_ENDPOINT={server.url}\n")

    def starts(self, run_name: str = "r1") -> list[str]:
        file = self.cloud.mount / "kidspeech" / "runs" / f"{run_name}.starts"
        return file.read_text().splitlines() if file.exists() else []

    def wait_for_no_pod(self, seconds: float = 15.0) -> None:
        end = time.monotonic() + seconds
        while self.cloud.alive() and time.monotonic() < end:
            time.sleep(0.1)
        assert self.cloud.alive() == []

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
