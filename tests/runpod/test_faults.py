"""
What goes wrong with RunPod, each with the end it must have: an answer that says what to do, and nothing that costs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from kidspeech.errors import ApiError, CapacityError, KidspeechError, RemoteError, VolumeError
from kidspeech.runpod.api import RunPod
from kidspeech.runpod.pods import Fleet

from .conftest import QUICK, Project, make_project, wait_until
from .fake_api import GPUS, HOST_FULL, NO_INSTANCES, Fault
from .s3_quirks import S3

pytestmark = pytest.mark.integration
CREATE = ("POST", "/pods")
SILENCE = 3.0  # seconds, one more than the client's patience


@dataclass(frozen=True)
class Case:
    """
    A fault, and the end it must have.
    """

    name: str
    break_it: Callable[[Project], object]
    error: type[KidspeechError] | None = None
    """None where the training must succeed all the same."""
    says: str = ""
    slow: bool = False
    """Whether it takes long without more to learn; CI runs it all the same."""
    pods: int = 1
    """How many pods the ledger has in the end, all of them ended."""


def faulty(*given: object, **more: object) -> Callable[[Project], object]:
    """
    Break requests.
    """
    return lambda project: project.cloud.faults.append(Fault(*given, **more))  # type: ignore[arg-type]


def attribute(**values: object) -> Callable[[Project], object]:
    """
    Set attributes of the service.
    """
    return lambda project: [setattr(project.cloud, name, value) for name, value in values.items()]


def impatient(then: Callable[[Project], object], seconds: float = 5.0) -> Callable[[Project], object]:
    """
    Break something for which a person would have to wait.
    """

    def act(project: Project) -> None:
        project.timing = replace(QUICK, ready=seconds)
        then(project)

    return act


def on(words: str, act: Callable[[Project], object]) -> Callable[[Project], object]:
    """
    Break something once the log or a stage has *words*.
    """

    def begin(project: Project) -> None:
        project.cloud.image.behaviour.write_text("steps=6\ndelay=0.2\n")
        done: list[str] = []

        def look(text: str) -> None:
            if words in text and not done:
                done.append(text)
                act(project)

        project.after = look

    return begin


def machine(act: str, *given: str) -> Callable[[Project], object]:
    """
    Do something to the pod's machine.
    """
    return lambda project: getattr(next(iter(project.cloud.machines.values())), act)(*given)


def rsync_cut_once(project: Project) -> None:
    """
    The first transfer to the pod dies in the middle.
    """
    (project.folder / "data" / "train" / "0001.arrow").write_bytes(os.urandom(40 * 2**20))
    flag = project.folder / "cut"
    kill = f"test -e {flag} || {{ touch {flag}; (sleep 0.1; kill -9 $$) >/dev/null 2>&1 </dev/null & }}"
    project.cloud.image.program("rsync", f'{kill}\nPATH="${{PATH#*:}}" exec rsync "$@"')


CASES = [
    Case("no capacity anywhere", attribute(full=set(GPUS)), CapacityError, "L40S.*no longer any instances", pods=0),
    Case("first type is full", attribute(full={"NVIDIA GeForce RTX 4090"})),
    Case("full, and the catalog does not know", faulty(*CREATE, 400, NO_INSTANCES)),
    Case("401", faulty("GET", "/network-volumes/.*", 401), ApiError, "RUNPOD_API_KEY is not accepted", pods=0),
    Case("402", faulty(*CREATE, 402), ApiError, "no credit left; nothing was started", pods=0),
    Case("403", faulty(*CREATE, 403, times=2), CapacityError, "lacks the right", pods=0),
    Case("404", faulty("GET", "/network-volumes/.*", 404), ApiError, "404", pods=0),
    Case("409", faulty(*CREATE, 409), ApiError, "409", pods=0),
    Case("410", faulty("GET", "/network-volumes/.*", 410), ApiError, "retired", pods=0),
    Case("422", faulty(*CREATE, 422, "$: additional properties 'x' not allowed"), ApiError, "additional properties", pods=0),
    Case("429", faulty(*CREATE, 429, headers={"Retry-After": "1"}), slow=True),
    Case("500", faulty(*CREATE, 500)),
    Case("502 before it acted", faulty(*CREATE, 502), slow=True),
    Case("502 after it acted", faulty(*CREATE, 502, when="after")),
    Case("silence before it acted", faulty(*CREATE, hang=SILENCE), slow=True),
    Case("silence after it acted", faulty(*CREATE, hang=SILENCE, when="after")),
    Case("silence for ever, and it acted", faulty(*CREATE, hang=SILENCE, when="after", times=9), slow=True),
    Case("terminate is not heard", faulty("POST", "/pods/.*/action", 500, times=3), slow=True),
    Case("never leaves PROVISIONING", impatient(attribute(stuck="PROVISIONING")), RemoteError, "not ready.*pulling .31mimage"),
    Case("ERROR while starting", attribute(stuck="ERROR"), RemoteError, "ended before it was ready: ERROR"),
    Case("no sshd", impatient(attribute(container={"FAKE_NO_SSHD": "1"})), RemoteError, "was not ready after"),
    Case("late sshd", attribute(container={"FAKE_LATE": "2"}), slow=True),
    Case("stale port", attribute(stale_port=3), slow=True),
    Case("port changes under the training", on("step 2", machine("move_port")), slow=True),
    Case("cut in the log", on("step 2", machine("kill", "@notty")), slow=True),
    Case("cut in rsync", rsync_cut_once, slow=True),
    Case("image runs no command of ours", attribute(ignores_args=True, container={"FAKE_SESSION_ENV": "1"})),
    Case(
        "image without tmux",
        lambda p: p.cloud.image.program("tmux", "exit 1"),
        RemoteError,
        "",
    ),
]


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.slow else []) for case in CASES]
)
def test_ends_well_and_costs_nothing_more(case: Case, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Whatever RunPod does, the call ends as it must and the ledger has no open line.
    """
    if case.name.startswith("silence"):
        monkeypatch.setattr("kidspeech.runpod.api.TIMEOUT", httpx.Timeout(SILENCE - 1))
    monkeypatch.setattr("kidspeech.runpod.api._pauses", lambda: [0.1, 0.2, 0.4, 0.8, None])
    case.break_it(project)
    if case.error is None:
        assert len(project.train().files) == 3
        assert "DOUBLE" not in project.starts()
        assert len(project.starts()) == 1
    else:
        with pytest.raises(case.error, match=f"(?s){case.says}"):
            project.train()
    assert project.cloud.alive() == []
    assert len(project.cloud.ledger) == case.pods


@pytest.mark.slow
def test_a_refused_resume_makes_a_new_pod(project: Project) -> None:
    """
    A stopped pod whose host is full is replaced by one with the same specification, and does not stay behind.
    """
    first = project.train(detach=True).pod
    settings = project.settings
    with RunPod(settings.api_key, settings.api_url) as api:
        Fleet(settings, api, timing=QUICK).end(first, keep=True)
    project.cloud.full_host = True
    outcome = project.train()
    assert outcome.pod != first
    assert any("host is full" in stage for stage in project.stages)
    assert list(project.cloud.pods) == []


@pytest.mark.slow
def test_resumes_a_paused_pod_with_a_new_deadline(project: Project) -> None:
    """
    A paused pod comes back as itself; its watchdog does not end it for the deadline of before.
    """
    project.train_for_long()
    first = project.train(detach=True).pod
    wait_until(project.starts)  # detached when the job is started; its first line takes a moment more
    settings = project.settings
    with RunPod(settings.api_key, settings.api_url) as api:
        Fleet(settings, api, timing=QUICK).end(first, keep=True)
    project.cloud.pods[first]["env"]["KIDSPEECH_DEADLINE"] = "1000"
    project.train_to_the_end()
    outcome = project.train()
    assert outcome.pod == first
    assert project.cloud.alive() == []
    assert len(project.starts()) == 2


@pytest.mark.slow
def test_the_deadline_ends_the_training_and_the_pod(project: Project) -> None:
    """
    At --max-hours the training is asked to save, and the controller ends the pod without waiting for its watchdog.
    """
    project.train_for_long()
    with pytest.raises(RemoteError, match=r"hours|h are over .* the pod has ended"):
        project.train(max_hours=5 / 3600)
    assert [entry.by for entry in project.cloud.ledger] == ["controller"]


@pytest.mark.slow
def test_a_clock_that_is_wrong_here_moves_no_deadline(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The pod's deadline is in the service's time, though this machine's clock jumps a day in the middle.
    """
    jump = iter([0, 0] + [86_400] * 10_000)
    real = time.time
    monkeypatch.setattr("kidspeech.runpod.api.time", type("Clock", (), {"time": staticmethod(lambda: real() + next(jump))}))
    project.train(max_hours=1.0)
    body = next(raw for method, path, raw in project.cloud.requests if (method, path) == ("POST", "/v2/pods"))
    deadline = int(body.split('"KIDSPEECH_DEADLINE":')[1].split('"')[1])
    assert abs(deadline - (real() + 3600 + 300)) < 60
    assert project.cloud.alive() == []


@pytest.mark.slow
def test_two_controllers_at_once_train_once(project: Project, ssh_key: Path, short: Path) -> None:
    """
    From two machines without S3 keys, one run trains once, and both get its checkpoint.
    """
    project.cloud.image.behaviour.write_text("steps=10\ndelay=0.3\n")
    other = make_project(project.cloud, short / "other", ssh_key)
    errors: list[RemoteError] = []

    def train(one: Project) -> None:
        try:
            one.train()
        except RemoteError as error:  # the faster one has fetched and ended the pod: the same command again fetches too
            errors.append(error)
            one.train()

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(train, one) for one in (project, other)]:
            future.result()
    assert len(errors) <= 1
    assert len(project.starts()) == 1, project.starts()
    assert project.cloud.alive() == []
    for one in (project, other):
        assert (one.folder / "runs" / "r1" / "best" / "model.safetensors").is_file()


def test_trains_over_s3_and_fetches_a_finished_run_without_a_pod(project: Project, s3: S3) -> None:
    """
    With S3 keys the data are there before a pod bills, and a second call needs none.
    """
    project.with_s3(s3)
    project.train()
    assert not any(stage.startswith("copying") for stage in project.stages[: project.stages.index("3/7 obtaining a pod")])
    assert project.cloud.ledger[0].by == "controller"
    (project.folder / "runs" / "r1" / "run.json").unlink()
    again = project.train()
    assert (again.pod, len(again.files)) == ("", 3)
    assert len(project.cloud.ledger) == 1


def test_a_full_volume_starts_no_pod(project: Project, s3: S3) -> None:
    """
    507 comes before anything bills.
    """
    project.with_s3(s3)
    s3.quirks.room = 1000
    with pytest.raises(VolumeError, match="volume is full"):
        project.train()
    assert project.cloud.ledger == []


@pytest.mark.slow
def test_a_full_volume_under_rsync_ends_the_pod(project: Project) -> None:
    """
    The pod's word for it is understood.
    """
    project.cloud.image.program("rsync", 'echo "rsync: write failed: No space left on device (28)" >&2; exit 11')
    with pytest.raises(VolumeError, match="volume is full"):
        project.train()
    assert project.cloud.alive() == []


def test_an_interrupt_before_the_training_ends_the_pod(project: Project) -> None:
    """
    Ctrl-C while the pod is set up leaves nothing behind.
    """

    def interrupt(stage: str) -> None:
        if stage.startswith("5/7"):
            raise KeyboardInterrupt

    project.after = interrupt
    with pytest.raises(KeyboardInterrupt):
        project.train()
    assert project.cloud.alive() == []


def test_an_interrupt_within_the_create_ends_the_pod(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A signal that arrives while the service answers finds the pod by its name.
    """
    real = RunPod.create

    def create(self: RunPod, body: object) -> object:
        real(self, body)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(RunPod, "create", create)
    with pytest.raises(KeyboardInterrupt):
        project.train()
    assert len(project.cloud.ledger) == 1
    assert project.cloud.alive() == []


def test_the_words_of_a_full_host_are_known() -> None:
    """
    The API has no code for it.
    """
    from kidspeech.runpod.api import is_full

    assert is_full(ApiError(HOST_FULL, 500))
    assert is_full(ApiError(NO_INSTANCES, 400))
    assert not is_full(ApiError("gpu.id: no such type", 400))
