"""
kidspeech runpod logs, attach, tensorboard: what goes on inside a pod.
"""

from __future__ import annotations

from typing import Annotated

import typer
from typer import Option

from kidspeech.cli import output
from kidspeech.cli.runpod import session
from kidspeech.cli.runpod.session import EnvOpt, RunOpt


def logs(
    env: EnvOpt = None, run: RunOpt = None, follow: Annotated[bool, Option("--follow", "-f", help="Read on.")] = False
) -> None:
    """
    Print the log of the training.
    """
    from kidspeech.runpod.care import log_lines

    with session.fleet_of(env) as fleet:
        for line in log_lines(fleet, run, follow=follow):
            output.data(line)


def attach(env: EnvOpt = None, run: RunOpt = None) -> None:
    """
    Open the pod's tmux, or a shell where nothing trains; leave it with Ctrl-b d.
    """
    from kidspeech.runpod.care import pick, reconnect

    with session.fleet_of(env) as fleet:
        code = reconnect(fleet, pick(fleet, run)).attach()
    raise typer.Exit(code)


def tensorboard(
    env: EnvOpt = None, run: RunOpt = None, port: Annotated[int, Option("--port", help="Port on this machine.")] = 6006
) -> None:
    """
    Show the run's curves at http://localhost:6006 until Ctrl-C.
    """
    from kidspeech.runpod.care import curves

    with session.fleet_of(env) as fleet, curves(fleet, run, port) as tunnel:
        output.data(f"http://localhost:{port}")
        try:
            tunnel.wait()
        except KeyboardInterrupt:
            return
    output.note("the tunnel has ended: is the port taken, or the pod gone?")
    raise typer.Exit(1)
