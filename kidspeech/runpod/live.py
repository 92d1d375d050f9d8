"""
What kidspeech believes of RunPod from documents and reports alone, and how a user with an account can see for himself.

Nobody has run this against the real service yet. `kidspeech runpod doctor --live` does, on one pod that ends itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from kidspeech.errors import ApiError, KidspeechError, SshError
from kidspeech.progress import Progress, silent
from kidspeech.runpod.clock import polls
from kidspeech.runpod.doctor import Check
from kidspeech.runpod.models import Pod
from kidspeech.runpod.places import PROBE
from kidspeech.runpod.plan import Order, Plan, plans_of
from kidspeech.runpod.pods import Fleet
from kidspeech.runpod.remote import Remote
from kidspeech.runpod.s3 import connect
from kidspeech.runpod.volume import open_volume

LIMIT = 0.5  # hours until the probe's own deadline


@dataclass(frozen=True)
class Statement:
    """
    One belief, with the place that depends on it.
    """

    name: str
    text: str


STATEMENTS = (
    Statement("create", "a create with args, gpu.minCudaVersion and an own PUBLIC_KEY is taken (pods.py, specification)"),
    Statement("args", "args is split as a shell does, runs instead of /start.sh, and may exec it (pods.py, START)"),
    Statement("door", "ssh.direct or runtime.ports show a public port for 22 in the Secure Cloud (models.py, Pod.door)"),
    Statement("tools", "the image has tmux, rsync, flock, curl, md5sum and python3 with venv (pod.sh, check)"),
    Statement("torch", "the image's python3 has CUDA torch 2.8 or later, seen through --system-site-packages (bootstrap.sh)"),
    Statement("environ", "/proc/1/environ has RUNPOD_POD_ID and a pod-scoped RUNPOD_API_KEY (watchdog.sh)"),
    Statement("atomic", "creating a file exclusively on the volume succeeds for one of two (pod.sh, start)"),
    Statement("stop", "a pod with a network volume can be stopped, and is called EXITED then (care.py, pause)"),
    Statement("env", "the environment of a stopped pod can be replaced before it starts (pods.py, _resume)"),
    Statement("start", "a stopped pod starts, or is refused with words that is_full knows (api.py, is_full)"),
    Statement("fresh keys", "after a start ssh.direct shows the new port within the time to be ready (pods.py, ready)"),
    Statement("self", "the pod's own key may terminate it: 204, then 404 within seconds (watchdog.sh, act)"),
    Statement("s3 round", "S3 takes, shows (perhaps 403 at first) and deletes an object (volume.py)"),
    Statement("s3 upload", "S3 lists unfinished uploads and their parts, so that one can go on (volume.py, _resumable)"),
)
"""What FACTS could not settle without an account and kidspeech relies on. Not checked, because it would need a lack of
credit, of room or of machines: 402, 507, 413, the words of "no capacity", the end of a pod at zero balance."""


def examine_live(fleet: Fleet, progress: Progress = silent) -> list[Check]:
    """
    Check STATEMENTS on one pod, which is ended whatever happens.
    """
    found: dict[str, Check] = {}
    try:
        with _a_pod(fleet, progress) as (pod, plan):
            found["create"] = Check("create", True, pod.id)
            for name, look in _looks(fleet, pod, plan, progress):
                progress("checking statements", len(found), len(STATEMENTS), name)
                found[name] = _tried(name, look)
    except KidspeechError as error:
        found.setdefault("create", Check("create", False, str(error)))
    for name, look in _s3_looks(fleet):
        found[name] = _tried(name, look)
    return [replace(found.get(s.name, Check(s.name, None, "not reached")), name=f"{s.name}: {s.text}") for s in STATEMENTS]


@contextmanager
def _a_pod(fleet: Fleet, progress: Progress) -> Iterator[tuple[Pod, Plan]]:
    plan = plans_of(Order("", Path(), Path("doctor"), max_hours=LIMIT), fleet.settings, fleet.api)[0]
    pod = fleet.obtain(plan, progress)
    try:
        yield pod, plan
    finally:
        fleet.end(pod.id)


def _looks(fleet: Fleet, pod: Pod, plan: Plan, progress: Progress) -> Iterator[tuple[str, Callable[[], str]]]:
    """
    Yield the checks in an order in which each leaves the pod as the next one needs it.
    """
    remotes: list[Remote] = []

    def door() -> str:
        remotes.append(Remote(fleet.ready(pod, progress), pod.id))
        return str(remotes[-1].shell.target.door)

    def run(*words: str) -> str:
        return remotes[-1].shell.run(words).strip()

    yield "door", door
    if not remotes:
        return
    yield "args", lambda: run("sh", "-c", 'grep -m 1 "on watch" "$HOME/.kidspeech/watchdog.log"')
    yield "tools", _did("all there", lambda: remotes[-1].install(pod.env))
    yield "torch", lambda: run("python3", "-c", "import torch; assert torch.cuda.is_available(); print(torch.__version__)")
    # counts the names; the values never leave the pod
    yield (
        "environ",
        lambda: run("sh", "-c", r"tr '\0' '\n' </proc/1/environ | grep -c '^RUNPOD_\(POD_ID\|API_KEY\)=' | grep 2"),
    )
    exclusive = 'cd "$1" && rm -f x && (set -C; : >x) && ! (set -C; : >x) 2>/dev/null && rm x && echo one of two'
    yield "atomic", lambda: run("bash", "-c", exclusive, "bash", plan.places.mount)
    yield "stop", _did("EXITED", lambda: fleet.end(pod.id, keep=True))
    yield "env", _did("replaced", lambda: fleet.api.set_env(pod.id, {**pod.env, **fleet.environment(plan, "terminate")}))
    yield "start", lambda: _start(fleet, pod)
    yield "fresh keys", door
    yield "self", lambda: _self_terminate(fleet, pod, remotes[-1])


def _did(text: str, act: Callable[[], None]) -> Callable[[], str]:
    def look() -> str:
        act()
        return text

    return look


def _start(fleet: Fleet, pod: Pod) -> str:
    try:
        fleet.api.act(pod.id, "start")
    except ApiError as error:
        return f"refused with {error.status}: {error}"
    return "started"


def _self_terminate(fleet: Fleet, pod: Pod, remote: Remote) -> str:
    """
    Let the watchdog do what it does at its end: it reads the key from the container and asks the API.
    """
    began = time.monotonic()
    remote.install(pod.env)
    kill = 'cd "$HOME/.kidspeech" && kill "$(cat watchdog.pid)" && flock -w 10 watchdog.lock true'
    remote.shell.run(["bash", "-c", kill])
    with suppress(SshError):  # one anew, whose deadline is over: the pod may be gone before it answers
        remote.install({**pod.env, "KIDSPEECH_DEADLINE": "1"})
    for _ in polls(fleet.clock, 120, 2):
        if fleet.api.pod(pod.id) is None:
            return f"gone after {time.monotonic() - began:.0f} s"
    msg = "the pod is still there after two minutes: its own key can't end it"
    raise ApiError(msg)


def _s3_looks(fleet: Fleet) -> Iterator[tuple[str, Callable[[], str]]]:
    s3 = fleet.settings.s3
    if s3 is None:
        return
    plan_volume = fleet.volume()
    volume = open_volume(s3, plan_volume, fleet.clock)

    def round_trip() -> str:
        volume.write(f"{PROBE}/object", b"probe")
        entry = volume.head(f"{PROBE}/object")
        volume.delete([f"{PROBE}/object"])
        return f"etag {entry.etag}" if entry and volume.head(f"{PROBE}/object") is None else "NOT deleted"

    def unfinished() -> str:
        client, bucket = connect(s3, plan_volume), s3.bucket or plan_volume.id
        upload = client.create_multipart_upload(Bucket=bucket, Key=f"{PROBE}/upload")["UploadId"]
        client.upload_part(Bucket=bucket, Key=f"{PROBE}/upload", UploadId=upload, PartNumber=1, Body=b"x" * 2**20)
        return f"{volume.abandon_uploads(PROBE)} listed and dropped"

    yield "s3 round", round_trip
    yield "s3 upload", unfinished


def _tried(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, look())
    except KidspeechError as error:
        return Check(name, False, str(error))
