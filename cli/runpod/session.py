"""
What the commands of the group share: their options, the open account, and the question before it costs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from kidspeech.cli import output

if TYPE_CHECKING:
    from kidspeech.runpod.pods import Fleet

EnvOpt = Annotated[Path | None, Option("--env", help="Settings file; the default is .runpod.env in this folder.")]
RunOpt = Annotated[str | None, Option("--run", help="Name of the run, where several pods are up.")]
HoursOpt = Annotated[float, Option("--hours", min=0.1, help="When its watchdog ends it.")]
VolumeOpt = Annotated[str | None, Option("--volume", help="Id of the volume, where NETWORK_VOLUME_ID lists several.")]


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


def ask(question: str, yes: bool) -> None:
    """
    Go on if the user wants to, or has said so before; else leave.
    """
    if not yes and not typer.confirm(question, err=True):
        raise typer.Exit(1)
