"""
kidspeech runpod: the pod, the volume and the bill.
"""

from __future__ import annotations

import json
import logging
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from kidspeech.cli import output
from kidspeech.cli.options import JsonOpt

if TYPE_CHECKING:
    from kidspeech.runpod.pods import Fleet
    from kidspeech.runpod.storage import OverSsh
    from kidspeech.runpod.volume import Volume

app = typer.Typer(
    name="runpod",
    help="Pods, the volume and the bill. `kidspeech train … --remote runpod` does all of it in one command.",
    no_args_is_help=True,
)
EnvOpt = Annotated[Path | None, Option("--env", help="Settings file; the default is .runpod.env in this folder.")]
RunOpt = Annotated[str | None, Option("--run", help="Name of the run, where several pods are up.")]
YesOpt = Annotated[bool, Option("--yes", "-y", help="Don't ask.")]
GpuOpt = Annotated[list[str] | None, Option("--gpu", help="GPU type; repeat it for more, in order of preference.")]


@contextmanager
def fleet_of(env: Path | None) -> Iterator[Fleet]:
    """
    Open the account that the settings name.
    """
    from kidspeech.runpod.api import RunPod
    from kidspeech.runpod.pods import Fleet
    from kidspeech.runpod.settings import load_settings

    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    settings = load_settings(env)
    for warning in settings.warnings:
        output.note(f"warning: {warning}")
    with RunPod(settings.api_key, settings.api_url) as api:
        yield Fleet(settings, api)


@app.command()
def doctor(
    env: EnvOpt = None,
    as_json: JsonOpt = False,
    live: Annotated[bool, Option("--live", help="Check what is known from documents only, on a pod for some cents.")] = False,
    yes: YesOpt = False,
) -> None:
    """
    Check settings, keys, volume, stock and S3 without starting anything.
    """
    from kidspeech.runpod.doctor import examine

    with fleet_of(env) as fleet:
        checks = list(examine(fleet.settings, fleet.api))
        if live:
            from kidspeech.runpod.live import STATEMENTS, examine_live

            ask = f"{len(STATEMENTS)} statements; a pod runs for some minutes, which costs some cents. Go on?"
            if not yes and not typer.confirm(ask, err=True):
                raise typer.Exit(1)
            with output.progress() as progress:
                checks += examine_live(fleet, progress)
    if as_json:
        output.as_json([asdict(check) for check in checks])
    else:
        for check in checks:
            mark = {True: "ok", False: "NO", None: "--"}[check.good]
            output.data(f"{mark}  {check.name}: {check.detail}")
    if any(check.good is False for check in checks):
        raise typer.Exit(1)


@app.command()
def gpus(env: EnvOpt = None, as_json: JsonOpt = False) -> None:
    """
    List GPU types with price and stock in the volume's data centre.
    """
    with fleet_of(env) as fleet:
        center = fleet.api.volume(fleet.settings.volume_id).data_center
        found = sorted(fleet.api.gpus(), key=lambda gpu: (gpu.stock(center) == "NONE", gpu.price.secure))
    if as_json:
        output.as_json([{"id": g.id, "gb": g.memory, "dollars": g.price.secure, "stock": g.stock(center)} for g in found])
        return
    rows = [[g.id, f"{g.memory}", f"{g.price.secure:.2f}", g.stock(center).lower()] for g in found]
    output.table(f"GPUs in {center}", ["type", "GB", "$/h", "stock"], rows)


@app.command()
def push(folder: Annotated[Path, Argument(help="A dataset that kidspeech prepare made.")], env: EnvOpt = None) -> None:
    """
    Bring a dataset to the volume: over S3, or through a pod that runs.
    """
    from kidspeech.runpod.care import pick, reconnect
    from kidspeech.runpod.sums import scan
    from kidspeech.runpod.sync import push_rsync, push_s3
    from kidspeech.runpod.volume import open_volume

    key = f"kidspeech/data/{folder.resolve().name}"
    with fleet_of(env) as fleet, output.progress() as progress:
        items = scan(folder, progress=progress)
        if fleet.settings.s3:
            volume = open_volume(fleet.settings.s3, fleet.api.volume(fleet.settings.volume_id))
            push_s3(volume, folder, items, key, progress)
        else:
            goal = f"{fleet.settings.mount}/{key}"
            remote = reconnect(fleet, pick(fleet))
            push_rsync(remote.shell, folder, items, goal, progress)
            remote.verify(goal, 60)
    output.done("on the volume", key)


@app.command()
def up(
    env: EnvOpt = None,
    gpu: GpuOpt = None,
    hours: Annotated[float, Option("--hours", min=0.1, help="When its watchdog ends it.")] = 2.0,
    yes: YesOpt = False,
) -> None:
    """
    Bring a pod up without a training, for as long as you say.
    """
    from kidspeech.runpod.care import bare_plan
    from kidspeech.runpod.care import up as bring_up

    with fleet_of(env) as fleet:
        plan = bare_plan(fleet.settings, fleet.api, gpus=tuple(gpu or ()), hours=hours)
        output.note(
            f"{plan.candidates[0].gpu} at ${plan.candidates[0].price:.2f}/h, at most ${plan.ceiling:.2f} in {hours:g} h"
        )
        if not yes and not typer.confirm("Go on?", err=True):
            raise typer.Exit(1)
        with output.progress() as progress:
            pod, _ = bring_up(fleet, plan, progress)
    output.done("the pod is up", pod.id, "kidspeech runpod attach   (and at the end: kidspeech runpod stop)")


@app.command()
def status(env: EnvOpt = None, as_json: JsonOpt = False) -> None:
    """
    Show what runs, since when, what it has cost, and the last line of its log.
    """
    from kidspeech.runpod.care import report

    with fleet_of(env) as fleet:
        reports = report(fleet, fleet.settings.mount)
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


@app.command()
def logs(
    env: EnvOpt = None, run: RunOpt = None, follow: Annotated[bool, Option("--follow", "-f", help="Read on.")] = False
) -> None:
    """
    Print the log of the training.
    """
    from kidspeech.runpod.care import pick, reconnect
    from kidspeech.runpod.models import RUN
    from kidspeech.runpod.ssh import plain

    with fleet_of(env) as fleet:
        pod = pick(fleet, run)
        job = f"{fleet.settings.mount}/kidspeech/jobs/{pod.env.get(RUN, '')}"
        remote = reconnect(fleet, pod)
        if not follow:
            lines = remote.shell.run(["tail", "-n", "1000", f"{job}/logs/current.log"]).splitlines()
            output.data("\n".join(plain(line) for line in lines))
            return
        with remote.log(job, 0) as process:
            for raw in process.stdout or ():
                output.data(plain(raw.decode(errors="replace")))


@app.command()
def attach(env: EnvOpt = None, run: RunOpt = None) -> None:
    """
    Open the pod's tmux, or a shell where nothing trains; leave it with Ctrl-b d.
    """
    from kidspeech.runpod.care import pick, reconnect
    from kidspeech.runpod.remote import VERB
    from kidspeech.runpod.ssh import clean_environ, ssh_argv

    with fleet_of(env) as fleet:
        shell = reconnect(fleet, pick(fleet, run)).shell
        code = subprocess.run(ssh_argv(shell.target, [*VERB, "attach"], tty=True), env=clean_environ(), check=False).returncode
    raise typer.Exit(code)


@app.command()
def tensorboard(
    env: EnvOpt = None, run: RunOpt = None, port: Annotated[int, Option("--port", help="Port on this machine.")] = 6006
) -> None:
    """
    Show the run's curves at http://localhost:6006 until Ctrl-C.
    """
    from kidspeech.runpod.care import pick, reconnect
    from kidspeech.runpod.models import RUN

    with fleet_of(env) as fleet:
        pod = pick(fleet, run)
        remote = reconnect(fleet, pod)
        there = remote.tensorboard(f"{fleet.settings.mount}/kidspeech/runs/{pod.env.get(RUN, '')}")
        with remote.shell.tunnel(port, there) as tunnel:
            output.data(f"http://localhost:{port}")
            try:
                tunnel.wait()
            except KeyboardInterrupt:
                return
    raise typer.Exit(1)


@app.command()
def pull(
    run: Annotated[str, Argument(help="Name of the run.")],
    env: EnvOpt = None,
    out: Annotated[Path | None, Option("--out", help="Folder for it; the default is runs/RUN.")] = None,
) -> None:
    """
    Fetch best/, run.json and TensorBoard logs of a run, verified: through its pod, or over S3.
    """
    from kidspeech.runpod.bring_home import pull_run

    goal = out or Path("runs") / run
    with fleet_of(env) as fleet, output.progress() as progress:
        files = pull_run(fleet, run, goal, progress)
    output.done(f"{len(files)} files", goal, shlex.join(["kidspeech", "predict", str(goal / "best"), "…"]))


@app.command("ls")
def list_volume(path: Annotated[str, Argument(help="Folder on the volume.")] = "kidspeech", env: EnvOpt = None) -> None:
    """
    List a folder on the volume.
    """
    with fleet_of(env) as fleet:
        for entry in _storage(fleet).folder(path):
            output.data(f"{'' if entry.size is None else _megabytes(entry.size):>10}  {entry.key}{'/' * (entry.size is None)}")


@app.command()
def clean(
    paths: Annotated[list[str] | None, Argument(help="Folders on the volume; without any, what no run needs.")] = None,
    env: EnvOpt = None,
    yes: YesOpt = False,
) -> None:
    """
    Delete from the volume: old checkpoints, logs, caches, or what you name. It shows them and asks first.
    """
    from kidspeech.runpod.models import ALIVE, RUN
    from kidspeech.runpod.storage import leftovers, named

    with fleet_of(env) as fleet:
        storage = _storage(fleet)
        busy = {pod.env.get(RUN, "") for pod in fleet.ours() if pod.status in ALIVE}
        found = named(storage, paths) if paths else leftovers(storage, busy)
        for item in found:
            output.note(f"{_megabytes(item.size):>10}  {item.folder}  ({item.why})")
        if not found or not (yes or typer.confirm(f"Delete {_megabytes(sum(item.size for item in found))}?", err=True)):
            raise typer.Exit(0 if not found else 1)
        for item in found:
            storage.delete(item.keys)
    output.note("deleted")


@app.command()
def pause(env: EnvOpt = None, run: RunOpt = None) -> None:
    """
    Stop the pod and keep its disk. Only its host can start it again, and may be full then.
    """
    from kidspeech.runpod import care

    with fleet_of(env) as fleet:
        pod = care.pick(fleet, run)
        output.note(care.halt(fleet, pod))
        care.pause(fleet, pod)
    output.done("paused, the GPU is not billed", pod.id, "kidspeech runpod resume, or the same `kidspeech train` again")


@app.command()
def resume(env: EnvOpt = None, run: RunOpt = None, hours: Annotated[float, Option("--hours", min=0.1)] = 2.0) -> None:
    """
    Start a paused pod again, or a new one like it where its host is full.
    """
    from kidspeech.runpod import care
    from kidspeech.runpod.models import RUN

    with fleet_of(env) as fleet:
        pod = care.pick(fleet, run, alive=False)
        plan = care.bare_plan(fleet.settings, fleet.api, name=pod.env.get(RUN, "up"), hours=hours)
        with output.progress() as progress:
            pod, _ = care.up(fleet, plan, progress)
    output.done("the pod is up", pod.id, "kidspeech runpod attach")


@app.command()
def stop(env: EnvOpt = None, run: RunOpt = None) -> None:
    """
    Let the training save, then end the billing of the GPU. The volume stays.
    """
    from kidspeech.runpod import care

    with fleet_of(env) as fleet:
        pod = care.pick(fleet, run)
        output.note(care.halt(fleet, pod))
        fleet.end(pod.id, keep=not pod.ours)
    output.done("ended, the volume is kept", pod.id)


@app.command()
def terminate(env: EnvOpt = None, run: RunOpt = None) -> None:
    """
    End the pod at once, whatever it does. The volume stays.
    """
    from kidspeech.runpod import care

    with fleet_of(env) as fleet:
        pod = care.pick(fleet, run, alive=False)
        fleet.end(pod.id)
    output.done("ended, the volume is kept", pod.id)


@app.command()
def reap(env: EnvOpt = None, yes: YesOpt = False, as_json: JsonOpt = False) -> None:
    """
    List and end this project's pods that are past their deadline: the last belt, for a cron job.
    """
    from kidspeech.runpod.care import overdue

    with fleet_of(env) as fleet:
        late = overdue(fleet)
        for pod in late:
            output.note(f"{pod.id} {pod.name} {pod.status.lower()} ${pod.cost:.2f}/h")
        if late and not yes and not typer.confirm(f"End {len(late)} pods?", err=True):
            raise typer.Exit(1)
        for pod in late:
            fleet.end(pod.id)
    output.data(json.dumps([pod.id for pod in late]) if as_json else f"{len(late)} pods ended")


def _storage(fleet: Fleet) -> Volume | OverSsh:
    from kidspeech.runpod.care import pick, reconnect
    from kidspeech.runpod.storage import OverSsh
    from kidspeech.runpod.volume import open_volume

    if fleet.settings.s3:
        return open_volume(fleet.settings.s3, fleet.api.volume(fleet.settings.volume_id))
    return OverSsh(reconnect(fleet, pick(fleet)).shell, fleet.settings.mount)


def _megabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
