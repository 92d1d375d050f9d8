"""
What `kidspeech runpod` does to pods that are there: find, tell, hold, pause, end.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from kidspeech.errors import InputError, RemoteError, SshError
from kidspeech.progress import Progress, silent
from kidspeech.runpod.api import RunPod
from kidspeech.runpod.models import ALIVE, RUN, Pod
from kidspeech.runpod.plan import MAX_HOURS, Order, Plan, choose
from kidspeech.runpod.pods import Fleet
from kidspeech.runpod.remote import Remote
from kidspeech.runpod.settings import Settings

log = logging.getLogger(__name__)

SAVE_SECONDS = 120
LATE = 300  # seconds after its own deadline by which a watchdog has surely acted


@dataclass(frozen=True)
class Report:
    """
    One pod, for people.
    """

    id: str
    name: str
    status: str
    run: str
    gpu: str
    hours: float
    """Since it was made."""
    price: float
    """Dollars an hour at the moment; 0 where it is stopped."""
    dollars: float
    """What it has cost about: its price times its age."""
    hours_left: float | None
    """Until its watchdog ends it; None where it has none."""
    training: str
    """running, idle, or why that can't be seen."""
    last: str
    """The last line of the log."""


def report(fleet: Fleet, plan_mount: str, *, look_inside: bool = True) -> list[Report]:
    """
    Return what runs, since when, at what cost, and the last line of its log.
    """
    return [_report(fleet, pod, plan_mount, look_inside=look_inside) for pod in fleet.ours()]


def pick(fleet: Fleet, run: str | None = None, *, alive: bool = True) -> Pod:
    """
    Return the pod that a command means: of that run, or the only one, or POD_ID's.

    Raises:
        InputError: there is none, or there are several.
    """
    pods = [pod for pod in fleet.ours() if (pod.status in ALIVE or not alive) and run in {None, pod.env.get(RUN)}]
    known = [pod for pod in pods if pod.id == fleet.settings.pod_id]
    chosen = pods if len(pods) == 1 else known if run is None else pods[:1]
    if len(chosen) == 1:
        return chosen[0]
    there = ", ".join(sorted(str(pod.env.get(RUN, pod.name)) for pod in pods))
    msg = f"several pods run ({there}): say which with --run" if pods else "no pod of this project runs"
    raise InputError(msg)


def reconnect(fleet: Fleet, pod: Pod) -> Remote:
    """
    Return a running pod for the commands of `kidspeech runpod`, without waiting for one that is not there.

    Raises:
        RemoteError: it can't be reached.
    """
    if pod.door is None:
        msg = f"pod {pod.id} is {pod.status.lower()} and has no ssh address yet"
        raise RemoteError(msg)
    remote = Remote(fleet.ready(pod), pod.id)
    try:
        remote.install(pod.env)
    except SshError as error:
        msg = f"pod {pod.id}: {error}"
        raise RemoteError(msg) from None
    return remote


def bare_plan(settings: Settings, api: RunPod, name: str = "up", gpus: tuple[str, ...] = (), hours: float = MAX_HOURS) -> Plan:
    """
    Return a plan for a pod without a training.
    """
    volume = api.volume(settings.volume_id)
    candidates = choose(api.gpus(), gpus or settings.gpu_types, volume)
    return Plan(Order("", Path(), Path(name), gpus=gpus, max_hours=hours), settings, volume, candidates, ())


def up(fleet: Fleet, plan: Plan, progress: Progress = silent) -> tuple[Pod, Remote]:
    """
    Bring a pod up and keep it for the plan's hours.
    """
    pod = next(iter(fleet.of_run(plan.run)), None) or fleet.obtain(plan, progress)
    with fleet.or_end(pod):
        remote = Remote(fleet.ready(pod, progress), pod.id)
        remote.install({**fleet.environment(plan, "terminate" if pod.ours else "stop"), **pod.env})
        remote.hold(int(plan.order.max_hours * 3600))
    return pod, remote


def halt(fleet: Fleet, pod: Pod) -> str:
    """
    Ask the training on a pod to save and end; return a sentence where that can't be done.
    """
    if pod.status != "RUNNING":
        return "it was not running"
    try:
        reconnect(fleet, pod).halt(SAVE_SECONDS)
    except RemoteError as error:
        return f"the training could not be asked to save: {error}"
    return ""


def pause(fleet: Fleet, pod: Pod) -> None:
    """
    Stop a pod with its container disk; only its host can start it again.
    """
    fleet.end(pod.id, keep=True)


def overdue(fleet: Fleet) -> list[Pod]:
    """
    Return this project's pods past their deadline, and those in an error.
    """
    limit = fleet.api.now() - LATE
    return [
        pod
        for pod in fleet.ours()
        if pod.ours and ((pod.deadline is not None and pod.deadline < limit) or pod.status == "ERROR")
    ]


def _report(fleet: Fleet, pod: Pod, mount: str, *, look_inside: bool) -> Report:
    now = fleet.api.now()
    hours = max(0.0, now - pod.created.timestamp()) / 3600 if pod.created else 0.0
    run, training, last = pod.env.get(RUN, ""), "", ""
    if look_inside and pod.status == "RUNNING" and run:
        try:
            state = reconnect(fleet, pod).state(f"{mount}/kidspeech/jobs/{run}")
            training, last = "running" if state.running else "idle", state.last
        except (RemoteError, SshError) as error:
            training = f"can't be seen: {error}"
    return Report(
        id=pod.id,
        name=pod.name,
        status=pod.status,
        run=run,
        gpu=pod.gpu.id if pod.gpu else "",
        hours=round(hours, 2),
        price=pod.cost,
        dollars=round(pod.cost * hours, 2),
        hours_left=round((pod.deadline - now) / 3600, 2) if pod.deadline else None,
        training=training,
        last=last,
    )
