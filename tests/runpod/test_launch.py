"""
One command from a laptop to a finished checkpoint.
"""

from __future__ import annotations

import pytest

from kidspeech.errors import BusyError, JobError, RemoteError

from .conftest import Project

pytestmark = pytest.mark.integration


def test_trains_fetches_and_ends_the_pod(project: Project) -> None:
    """
    One call leaves a verified checkpoint here and nothing that costs there.
    """
    outcome = project.train()
    out = project.folder / "runs" / "r1"
    assert {path.relative_to(out).as_posix() for path in outcome.files} == {
        "best/model.safetensors",
        "run.json",
        "tensorboard/events.out.tfevents.1",
    }
    assert (out / "best" / "model.safetensors").read_bytes() == b"weights" * 1000
    assert "step 3 loss 0.333 [31mred[0m" in project.lines  # the escape is gone, its letters are only letters
    assert (out / "logs" / "current.log").read_text().splitlines()[-1] == "done"
    assert [entry.by for entry in project.cloud.ledger] == ["controller"]
    assert project.starts() == ["start at 1 with ['dataset.json', 'train', 'val.arrow']"]
    assert "POD_ID=   # written back" in (project.folder / ".runpod.env").read_text()


def test_a_second_call_follows_the_first_ones_training(project: Project) -> None:
    """
    Ctrl-C lets go of the log and of nothing else; the same command comes back to it.
    """
    project.cloud.image.behaviour.write_text("steps=12\ndelay=0.3\n")

    def ctrl_c(line: str) -> None:
        if line.startswith("step 2"):
            raise KeyboardInterrupt

    project.after = ctrl_c
    first = project.train()
    assert first.running
    assert project.cloud.alive() == [first.pod]
    project.after = lambda _: None
    second = project.train()
    assert (second.pod, second.running) == (first.pod, False)
    assert len(project.starts()) == 1
    assert project.lines[-1] == "done"


@pytest.mark.slow
def test_detached_the_pod_ends_itself(project: Project) -> None:
    """
    With nobody there, the watchdog ends the pod soon after the training; a later call fetches through another pod.
    """
    project.cloud.image.behaviour.write_text("steps=6\ndelay=0.5\n")
    outcome = project.train(detach=True)
    assert outcome.running
    project.leave_alone()
    assert project.cloud.ledger[0].by == "watchdog"
    again = project.train()
    assert len(again.files) == 3
    assert len(project.starts()) == 1


@pytest.mark.slow
def test_resumes_from_the_newest_checkpoint(project: Project) -> None:
    """
    A pod that is terminated under the training costs the steps since its last checkpoint, in the next call.
    """
    project.train_for_long()

    def end(line: str) -> None:
        if line.startswith("step 4") and project.cloud.alive():
            project.cloud.end(project.cloud.alive()[0], "console")

    project.after = end
    with pytest.raises(RemoteError, match=r"ended under the training .* goes on from the newest checkpoint"):
        project.train()
    assert project.cloud.alive() == []
    project.after = lambda _: None
    project.train_to_the_end()
    project.train()
    assert project.starts()[0].split()[2] == "1"
    assert int(project.starts()[1].split()[2]) >= 4


def test_a_failed_training_says_why_and_ends_the_pod(project: Project) -> None:
    """
    The message has the log's last lines and a hint; the log is here.
    """
    project.cloud.image.behaviour.write_text(
        "steps=5\ndelay=0\nfail_at=2\ncode=1\nwords=torch.OutOfMemoryError: CUDA out of memory\n"
    )
    with pytest.raises(JobError, match=r"(?s)ended with code 1.*CUDA out of memory.*train.batch_seconds"):
        project.train()
    assert project.cloud.alive() == []
    assert "out of memory" in (project.folder / "runs" / "r1" / "logs" / "current.log").read_text()


@pytest.mark.slow
def test_a_training_killed_by_the_system_says_so(project: Project) -> None:
    """
    Signal 9 is named, with what it mostly means.
    """
    project.cloud.image.behaviour.write_text("steps=5\ndelay=0\nfail_at=2\ncode=137\n")
    with pytest.raises(JobError, match=r"(?s)killed by signal 9.*train.loader_workers"):
        project.train()
    assert project.cloud.alive() == []


def test_a_wheel_that_does_not_install_ends_the_pod(project: Project) -> None:
    """
    pip's words are in the message.
    """
    project.cloud.image.python_without_installing('echo "ERROR: No matching distribution found for jiwer>=4" >&2; exit 1')
    with pytest.raises(JobError, match=r"can't be installed on the pod: .*No matching distribution"):
        project.train()
    assert project.cloud.alive() == []


@pytest.mark.slow
def test_force_restart_begins_anew(project: Project) -> None:
    """
    A finished run is moved aside, once.
    """
    project.train()
    project.train(force_restart=True)
    assert [line.split()[2] for line in project.starts()] == ["1", "1"]
    assert (project.cloud.mount / "kidspeech" / "runs" / "r1.1" / "best").is_dir()


def test_force_restart_refuses_a_running_training(project: Project) -> None:
    """
    It never takes a running training's folder away.
    """
    project.train_for_long()
    outcome = project.train(detach=True)
    with pytest.raises(BusyError, match="kidspeech runpod stop"):
        project.train(force_restart=True)
    assert project.cloud.alive() == [outcome.pod]


@pytest.mark.slow
def test_a_container_that_restarts_goes_on(project: Project) -> None:
    """
    The watchdog comes back with the container, and the controller starts the training again where it was.
    """
    project.train_for_long()
    restarted: list[str] = []

    def restart(line: str) -> None:
        if line.startswith("step 3") and not restarted:
            restarted.append(line)
            project.train_to_the_end()
            project.cloud.restart_container(project.cloud.alive()[0])

    project.after = restart
    project.train()
    assert len(project.starts()) == 2
    assert len(project.cloud.ledger) == 1
    assert project.cloud.alive() == []
