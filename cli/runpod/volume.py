"""
kidspeech runpod push, pull, ls, clean: what lies on the volume.
"""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from kidspeech.cli import output
from kidspeech.cli.options import JsonOpt, YesOpt, run_folder
from kidspeech.cli.runpod import session
from kidspeech.cli.runpod.session import EnvOpt, VolumeOpt


def push(
    folder: Annotated[Path, Argument(help="A dataset that kidspeech prepare made.")],
    env: EnvOpt = None,
    volume: VolumeOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """
    Bring a dataset to the volume: over S3, or through a pod that runs.
    """
    from kidspeech.runpod.storage import push_dataset

    with session.fleet_of(env) as fleet, output.progress() as progress:
        key = push_dataset(fleet, folder, volume, progress)
    if as_json:
        output.as_json({"key": key})
    output.done("on the volume", key)


def pull(
    run: Annotated[str, Argument(help="Name of the run.")],
    env: EnvOpt = None,
    out: Annotated[Path | None, Option("--out", help="Folder for it; the default is runs/RUN.")] = None,
    as_json: JsonOpt = False,
) -> None:
    """
    Fetch best/, run.json and TensorBoard logs of a run, verified: through its pod, or over S3.
    """
    from kidspeech.runpod.bring_home import pull_run

    goal = out or run_folder(run)
    with session.fleet_of(env) as fleet, output.progress() as progress:
        files = pull_run(fleet, run, goal, progress)
    if as_json:
        output.as_json([str(file) for file in files])
    output.done(f"{len(files)} files", goal, shlex.join(["kidspeech", "predict", str(goal / "best"), "…"]))


def list_volume(
    path: Annotated[str, Argument(help="Folder on the volume.")] = "kidspeech",
    env: EnvOpt = None,
    volume: VolumeOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """
    List a folder on the volume.
    """
    from kidspeech.runpod.storage import open_storage

    with session.fleet_of(env) as fleet:
        entries = open_storage(fleet, volume).folder(path)
    if as_json:
        output.as_json([{"key": entry.key, "size": entry.size} for entry in entries])
        return
    for entry in entries:
        output.data(f"{'' if entry.size is None else _megabytes(entry.size):>10}  {entry.key}{'/' * (entry.size is None)}")


def clean(
    paths: Annotated[list[str] | None, Argument(help="Folders on the volume; without any, what no run needs.")] = None,
    env: EnvOpt = None,
    volume: VolumeOpt = None,
    yes: YesOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """
    Delete from the volume: old checkpoints, logs, caches, or what you name. It shows them and asks first.
    """
    from kidspeech.runpod.storage import busy_runs, leftovers, named, open_storage

    with session.fleet_of(env) as fleet:
        storage = open_storage(fleet, volume)
        found = named(storage, paths) if paths else leftovers(storage, busy_runs(fleet))
        for item in found:
            output.note(f"{_megabytes(item.size):>10}  {item.folder}  ({item.why})")
        if found:
            session.ask(f"Delete {_megabytes(sum(item.size for item in found))}?", yes)
        for item in found:
            storage.delete(item.keys)
    if as_json:
        output.as_json([asdict(item) for item in found])
    output.note(f"{len(found)} folders deleted")


def _megabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
