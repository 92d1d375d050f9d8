"""
What `kidspeech runpod` does to pods that are there: find, tell, hold, pause, end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

from kidspeech.errors import InputError, RemoteError, SshError
from kidspeech.progress import Progress, silent
from kidspeech.runpod.catalog import first_that_has_one
from kidspeech.runpod.clock import UP_HOURS
from kidspeech.runpod.models import ALIVE, RUN, Pod
from kidspeech.runpod.places import Places
from kidspeech.runpod.plan import Order, Plan, plans_of
from kidspeech.runpod.pods import Fleet
from kidspeech.runpod.remote import Remote
from kidspeech.runpod.ssh import plain

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


def report(fleet: Fleet) -> list[Report]:
    """
    Return what runs, since when, at what cost, and the last line of its log.
    """
    return [_report(fleet, pod) for pod in fleet.ours()]


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
    msg = f"several pods run ({there}): say which with --run" if pods else _none(fleet, run)
    raise InputError(msg)


def _none(fleet: Fleet, run: str | None) -> str:
    known = {pod.id for pod in fleet.ours()}
    others = [pod.name for pod in fleet.api.pods() if pod.id not in known]
    also = f"; {', '.join(others)} is not this project's, and kidspeech leaves it alone" if others else ""
    return f"no pod of {'this project' if run is None else f'the run {run}'} runs{also}"


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


def log_lines(fleet: Fleet, run: str | None = None, *, follow: bool = False) -> Iterator[str]:
    """
    Yield the log of a run without control characters: its last thousand lines, or all of it until the training ends.
    """
    pod = pick(fleet, run)
    job, remote = Places(fleet.settings.mount).job(pod.env.get(RUN, "")), reconnect(fleet, pod)
    if not follow:
        yield from map(plain, remote.shell.run(["tail", "-n", "1000", f"{job}/logs/current.log"]).splitlines())
        return
    with remote.log(job, 0) as process:
        for raw in process.stdout or ():
            yield plain(raw.decode(errors="replace"))


@contextmanager
def curves(fleet: Fleet, run: str | None, port: int) -> Iterator[Popen[bytes]]:
    """
    Serve a run's TensorBoard on the pod, and lead 127.0.0.1:*port* to it while the block runs.
    """
    pod = pick(fleet, run)
    remote = reconnect(fleet, pod)
    there = remote.tensorboard(Places(fleet.settings.mount).run(pod.env.get(RUN, "")))
    with remote.shell.tunnel(port, there) as tunnel:
        yield tunnel


def bare_plans(fleet: Fleet, name: str = "up", gpus: tuple[str, ...] = (), hours: float = UP_HOURS) -> tuple[Plan, ...]:
    """
    Return plans for a pod without a training, one for each data centre to try.
    """
    return plans_of(Order("", Path(), Path(name), gpus=gpus, max_hours=hours), fleet.settings, fleet.api)


def up(fleet: Fleet, plans: Sequence[Plan], progress: Progress = silent) -> tuple[Pod, Remote]:
    """
    Bring a pod up and keep it for the plan's hours.
    """

    def obtain(plan: Plan) -> tuple[Pod, Plan]:
        return next(iter(fleet.of_run(plan.run)), None) or fleet.obtain(plan, progress), plan

    pod, plan = first_that_has_one(plans, obtain)
    with fleet.or_end(pod):
        remote = Remote(fleet.ready(pod, progress), pod.id)
        remote.install({**fleet.environment(plan, "terminate" if pod.ours else "stop"), **pod.env})
        remote.hold(int(plan.order.max_hours * 3600))
    return pod, remote


def resume(fleet: Fleet, run: str | None, hours: float, progress: Progress = silent) -> Pod:
    """
    Start a paused pod again, or a new one like it.
    """
    pod = pick(fleet, run, alive=False)
    return up(fleet, bare_plans(fleet, name=pod.env.get(RUN, "up"), hours=hours), progress)[0]


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


def pause(fleet: Fleet, run: str | None = None) -> tuple[Pod, str]:
    """
    Let a training save, and stop its pod with its container disk; only its host can start it again.
    """
    pod = pick(fleet, run)
    said = halt(fleet, pod)
    fleet.end(pod.id, keep=True)
    return pod, said


def stop(fleet: Fleet, run: str | None = None) -> tuple[Pod, str]:
    """
    Let a training save, and end its pod; one that kidspeech did not make is stopped, and keeps its disk.
    """
    pod = pick(fleet, run)
    said = halt(fleet, pod)
    fleet.end(pod.id, keep=not pod.ours)
    return pod, said


def terminate(fleet: Fleet, run: str | None = None) -> Pod:
    """
    Delete a pod, whatever it does.

    Raises:
        InputError: kidspeech did not make it, so what is on its disk is not kidspeech's to delete.
    """
    pod = pick(fleet, run, alive=False)
    if not pod.ours:
        msg = f"pod {pod.id} ({pod.name}) was not made by kidspeech: `kidspeech runpod stop` stops it and keeps its disk"
        raise InputError(msg)
    fleet.end(pod.id)
    return pod


def overdue(fleet: Fleet) -> list[Pod]:
    """
    Return all pods of the account that kidspeech made and that are past their deadline or in an error: whoever made them
    is past caring for them.
    """
    limit = fleet.api.now() - LATE
    return [
        pod
        for pod in fleet.api.pods()
        if pod.ours and ((pod.deadline is not None and pod.deadline < limit) or pod.status == "ERROR")
    ]


def _report(fleet: Fleet, pod: Pod) -> Report:
    now = fleet.api.now()
    hours = max(0.0, now - pod.created.timestamp()) / 3600 if pod.created else 0.0
    run, training, last = pod.env.get(RUN, ""), "", ""
    if pod.status == "RUNNING" and run:
        try:
            state = reconnect(fleet, pod).state(Places(fleet.settings.mount).job(run))
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
