"""
kidspeech runpod doctor, gpus, reap: the account as a whole.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from kidspeech.cli import output
from kidspeech.cli.options import JsonOpt, YesOpt
from kidspeech.cli.runpod import session
from kidspeech.cli.runpod.session import EnvOpt

if TYPE_CHECKING:
    from kidspeech.runpod.doctor import Check


def doctor(
    env: EnvOpt = None,
    as_json: JsonOpt = False,
    live: Annotated[bool, Option("--live", help="Check what is known from documents only, on a pod for some cents.")] = False,
    yes: YesOpt = False,
) -> None:
    """
    Check settings, keys, volumes, stock and S3 without starting anything.
    """
    from kidspeech.runpod.doctor import examine
    from kidspeech.runpod.live import STATEMENTS, examine_live

    with session.fleet_of(env) as fleet:
        checks = list(examine(fleet.settings, fleet.api))
        if live:
            session.ask(f"{len(STATEMENTS)} statements; a pod runs for some minutes, which costs some cents. Go on?", yes)
            with output.progress() as progress:
                checks += examine_live(fleet, progress)
    if as_json:
        output.as_json([asdict(check) for check in checks])
    else:
        _show(checks)
    if any(check.good is False for check in checks):
        raise typer.Exit(1)


def gpus(env: EnvOpt = None, as_json: JsonOpt = False) -> None:
    """
    List GPU types with price and stock in the volumes' data centres.
    """
    from kidspeech.runpod.catalog import offers

    with session.fleet_of(env) as fleet:
        found = offers(fleet.api.gpus(), fleet.volumes())
    if as_json:
        output.as_json([asdict(offer) for offer in found])
        return
    rows = [[o.id, o.data_center, f"{o.gb}", f"{o.dollars:.2f}", o.stock.lower()] for o in found]
    output.table("", ["type", "data centre", "GB", "$/h", "stock"], rows)


def reap(env: EnvOpt = None, yes: YesOpt = False, as_json: JsonOpt = False) -> None:
    """
    List and end kidspeech's pods that are past their deadline: the last belt, for a cron job.
    """
    from kidspeech.runpod.care import overdue

    with session.fleet_of(env) as fleet:
        late = overdue(fleet)
        for pod in late:
            output.note(f"{pod.id} {pod.name} {pod.status.lower()} ${pod.cost:.2f}/h")
        if late:
            session.ask(f"End {len(late)} pods?", yes)
        for pod in late:
            fleet.end(pod.id)
    if as_json:
        output.as_json([pod.id for pod in late])
    else:
        output.data(f"{len(late)} pods ended")


def _show(checks: list[Check]) -> None:
    for check in checks:
        mark = {True: "ok", False: "NO", None: "--"}[check.good]
        output.data(f"{mark}  {check.name}: {check.detail}")
