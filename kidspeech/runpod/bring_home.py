"""
The end of a run: its checkpoint, figures and curves to this machine, verified; or its log and the reason why not.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kidspeech.errors import JobError, RemoteError, SshError, VolumeError, writing
from kidspeech.progress import Progress
from kidspeech.runpod.models import RUN
from kidspeech.runpod.places import Places, job_key, run_key
from kidspeech.runpod.plan import Plan
from kidspeech.runpod.pods import Fleet
from kidspeech.runpod.remote import JobState, Remote, parse_end
from kidspeech.runpod.ssh import plain
from kidspeech.runpod.sums import read_sums
from kidspeech.runpod.sync import pull_rsync, pull_s3
from kidspeech.runpod.volume import Volume, open_volume

log = logging.getLogger(__name__)

LOG_BYTES = 20 * 2**20
SHOWN = 15
HINTS = (
    ("out of memory", "the GPU was too small for it: a smaller train.batch_seconds gives the same result with less memory"),
    ("no space left", "the volume is full: `kidspeech runpod clean` shows what can go"),
)


@dataclass(frozen=True)
class Fetched:
    """
    What was fetched.
    """

    files: tuple[Path, ...]


def fetch(plan: Plan, remote: Remote, volume: Volume | None, progress: Progress) -> Fetched:
    """
    Fetch best/, run.json, tensorboard/ and the log from a pod, or over S3 where the pod can't be reached any more.

    Raises:
        VolumeError: a file differs from what the pod wrote.
        SshError: the pod can't be reached, and there are no S3 keys.
    """
    try:
        source = plan.places.path(plan.run_key)
        files = pull_rsync(remote.shell, source, remote.sums(source), plan.order.out, progress)
        _save_log(plan, _log_of(plan, remote))
    except SshError:
        if volume is None:
            raise
        log.warning("the pod is out of reach; fetching over S3")
        return _fetch_s3(plan, volume, progress)
    return _complete(plan, files)


def fetch_finished(plan: Plan, volume: Volume, progress: Progress) -> Fetched | None:
    """
    Fetch a run of exactly this plan that has ended well, without a pod; None where there is none.
    """
    end = parse_end(volume.read(f"{plan.job_key}/job.json") or b"")
    if end is None or end.code != 0 or end.key != plan.fingerprint:
        return None
    progress("7/7 fetching", 0, 0, "the run has ended already")
    return _fetch_s3(plan, volume, progress)


def pull_run(fleet: Fleet, run: str, goal: Path, progress: Progress) -> list[Path]:
    """
    Fetch what there is of a run: over S3, else through the pod that runs it or any other of this volume.

    Raises:
        RemoteError: there are neither S3 keys nor a pod, or a file does not verify.
    """
    if fleet.settings.s3:
        for network_volume in fleet.volumes():
            volume = open_volume(fleet.settings.s3, network_volume, fleet.clock)
            listed = volume.read(f"{job_key(run)}/files.md5")
            if listed is not None:
                return pull_s3(volume, run_key(run), read_sums(listed), goal, progress)
    pods = [pod for pod in fleet.ours() if pod.status == "RUNNING"]
    pods.sort(key=lambda pod: pod.env.get(RUN) != run)  # the run's own, else any that has its volume
    if not pods:
        why = "the run has not ended" if fleet.settings.s3 else "there are no S3 keys"
        msg = f"no pod is up, and {why}: `kidspeech runpod up` first"
        raise RemoteError(msg)
    remote = Remote(fleet.ready(pods[0]), pods[0].id)
    remote.install(pods[0].env)
    source = Places(fleet.settings.mount).run(run)
    return pull_rsync(remote.shell, source, remote.sums(source), goal, progress)


def report_failure(plan: Plan, remote: Remote, state: JobState, tail: Sequence[str]) -> None:
    """
    Do nothing after a good end; else bring the log home and say why.

    Raises:
        JobError: the training failed.
    """
    if state.ended is not None and state.ended.code == 0:
        return
    try:
        _save_log(plan, _log_of(plan, remote))
    except SshError as error:
        log.warning("its log could not be fetched: %s", error)
    code = state.ended.code if state.ended else None
    how = "was cut off" if code is None else f"was killed by signal {code - 128}" if code > 128 else f"ended with code {code}"
    text = "\n".join(tail).lower()
    hints = [hint for words, hint in HINTS if words in text]
    if code == 137:
        hints += ["signal 9 is often the container running out of memory: fewer train.loader_workers need less"]
    lines = [f"the training {how}; checkpoints and log are on the volume, and the log is in {plan.order.out / 'logs'}:"]
    raise JobError("\n  ".join([*lines, *tail[-SHOWN:], *hints]))


def _fetch_s3(plan: Plan, volume: Volume, progress: Progress) -> Fetched:
    listed = volume.read(f"{plan.job_key}/files.md5")
    if listed is None:
        msg = f"the volume has no list of files for the run {plan.run}"
        raise VolumeError(msg)
    files = pull_s3(volume, plan.run_key, read_sums(listed), plan.order.out, progress)
    _save_log(plan, (volume.read(f"{plan.job_key}/logs/current.log") or b"").decode(errors="replace"))
    return _complete(plan, files)


def _complete(plan: Plan, files: list[Path]) -> Fetched:
    if plan.order.out / "run.json" not in files:
        msg = f"the training says that it ended well and left no run.json in {plan.run_key}"
        raise VolumeError(msg)
    return Fetched(tuple(files))


def _log_of(plan: Plan, remote: Remote) -> str:
    path = plan.places.path(f"{plan.job_key}/logs/current.log")
    return remote.shell.run(["tail", "-c", str(LOG_BYTES), path], timeout=300)


def _save_log(plan: Plan, text: str) -> None:
    file = plan.order.out / "logs" / "current.log"
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{plain(line)}\n" for line in text.splitlines()), encoding="utf-8")
