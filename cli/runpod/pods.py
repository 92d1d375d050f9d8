"""
kidspeech runpod up, status, pause, resume, stop, terminate: a pod from its beginning to its end.
"""

from __future__ import annotations

from dataclasses import asdict

from kidspeech.cli import output
from kidspeech.cli.options import GpuOpt, JsonOpt, YesOpt
from kidspeech.cli.runpod import session
from kidspeech.cli.runpod.session import EnvOpt, HoursOpt, RunOpt
from kidspeech.runpod.clock import UP_HOURS


def up(
    env: EnvOpt = None, gpu: GpuOpt = None, hours: HoursOpt = UP_HOURS, yes: YesOpt = False, as_json: JsonOpt = False
) -> None:
    """
    Bring a pod up without a training, for as long as you say.
    """
    from kidspeech.runpod import care

    with session.fleet_of(env) as fleet:
        plans = care.bare_plans(fleet, gpus=tuple(gpu or ()), hours=hours)
        first = plans[0].candidates[0]
        most = max(plan.ceiling for plan in plans)
        session.ask(f"{first.gpu} at ${first.price:.2f}/h, at most ${most:.2f} in {hours:g} h. Go on?", yes)
        with output.progress() as progress:
            pod, _ = care.up(fleet, plans, progress)
    if as_json:
        output.as_json({"id": pod.id, "name": pod.name})
    output.done("the pod is up", pod.id, "kidspeech runpod attach   (and at the end: kidspeech runpod stop)")


def status(env: EnvOpt = None, as_json: JsonOpt = False) -> None:
    """
    Show what runs, since when, what it has cost, and the last line of its log.
    """
    from kidspeech.runpod.care import report

    with session.fleet_of(env) as fleet:
        reports = report(fleet)
    if as_json:
        output.as_json([asdict(entry) for entry in reports])
        return
    for entry in reports:
        left = "no deadline" if entry.hours_left is None else f"{entry.hours_left:.1f} h to its deadline"
        output.data(
            f"{entry.run or entry.name}: pod {entry.id} {entry.status.lower()}, {entry.gpu}, training {entry.training or '-'}"
        )
        output.data(f"  {entry.hours:.2f} h, about ${entry.dollars:.2f} so far at ${entry.price:.2f}/h, {left}")
        output.data(f"  {entry.last}")
    if not reports:
        output.data("no pod of this project: nothing is billed but the volume")


def pause(env: EnvOpt = None, run: RunOpt = None) -> None:
    """
    Stop the pod and keep its disk. Only its host can start it again, and may be full then.
    """
    from kidspeech.runpod import care

    with session.fleet_of(env) as fleet:
        pod, said = care.pause(fleet, run)
    output.note(said)
    output.done("paused, the GPU is not billed", pod.id, "kidspeech runpod resume, or the same `kidspeech train` again")


def resume(env: EnvOpt = None, run: RunOpt = None, hours: HoursOpt = UP_HOURS) -> None:
    """
    Start a paused pod again, or a new one like it where its host is full.
    """
    from kidspeech.runpod import care

    with session.fleet_of(env) as fleet, output.progress() as progress:
        pod = care.resume(fleet, run, hours, progress)
    output.done("the pod is up", pod.id, "kidspeech runpod attach")


def stop(env: EnvOpt = None, run: RunOpt = None) -> None:
    """
    Let the training save, then end the billing of the GPU. The volume stays.
    """
    from kidspeech.runpod import care

    with session.fleet_of(env) as fleet:
        pod, said = care.stop(fleet, run)
    output.note(said)
    output.done("ended, the volume is kept", pod.id)


def terminate(env: EnvOpt = None, run: RunOpt = None) -> None:
    """
    End the pod at once, whatever it does. The volume stays.
    """
    from kidspeech.runpod import care

    with session.fleet_of(env) as fleet:
        pod = care.terminate(fleet, run)
    output.done("ended, the volume is kept", pod.id)
