"""
kidspeech runpod: the pod, the volume and the bill.
"""

from __future__ import annotations

import typer

from kidspeech.cli.runpod import account, inside, pods, volume

app = typer.Typer(
    name="runpod",
    help="Pods, the volume and the bill. `kidspeech train … --remote runpod` does all of it in one command.",
    no_args_is_help=True,
)
app.command()(account.doctor)
app.command()(account.gpus)
app.command()(volume.push)
app.command()(pods.up)
app.command()(pods.status)
app.command()(inside.logs)
app.command()(inside.attach)
app.command()(inside.tensorboard)
app.command()(volume.pull)
app.command("ls")(volume.list_volume)
app.command()(volume.clean)
app.command()(pods.pause)
app.command()(pods.resume)
app.command()(pods.stop)
app.command()(pods.terminate)
app.command()(account.reap)
