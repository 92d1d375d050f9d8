"""
kidspeech train --remote runpod: the plan, the question, and what to type next.
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING

from kidspeech.cli import output

if TYPE_CHECKING:
    from kidspeech.runpod.launch import Outcome
    from kidspeech.runpod.plan import Order, Plan


class Where(str, Enum):  # noqa: UP042  typer shows the value of a str
    """
    Where GPUs are rented.
    """

    runpod = "runpod"


def train_on_runpod(order: Order, *, detach: bool, yes: bool) -> None:
    """
    Show what it may cost, ask, and carry it out.
    """
    from kidspeech.cli.runpod import session
    from kidspeech.runpod.interrupts import let_go_when_closed
    from kidspeech.runpod.launch import run
    from kidspeech.runpod.plan import make_plans

    if order.debug:
        logging.basicConfig(format="%(message)s")
        logging.getLogger("kidspeech").setLevel(logging.INFO)
    let_go_when_closed()
    with session.fleet_of(None) as fleet:
        output.note("1/7 checking")
        plans = make_plans(order, fleet.settings, fleet.api)
        _show(plans)
        session.ask("Go on?", yes)
        with output.progress() as progress:
            outcome = run(plans, fleet.api, detach=detach, progress=progress, on_line=output.note)
    _tell(order, outcome)


def _show(plans: Sequence[Plan]) -> None:
    first = plans[0]
    for plan in plans:
        volume = plan.volume
        place = f"the volume {volume.name} in {volume.data_center} ({volume.size} GB)"
        output.note(f"run {plan.run} of {plan.order.recipe} on {place}" if plan is first else f"else on {place}")
        for candidate in plan.candidates:
            output.note(f"  {candidate.gpu}: ${candidate.price:.2f} an hour, stock {candidate.stock.lower()}")
    way = "over S3, before anything bills" if first.settings.s3 else "by rsync through the pod (S3 keys would do it before)"
    output.note(f"  data go {way}")
    most = max(plan.ceiling for plan in plans)
    output.note(f"at most ${most:.2f}: {first.order.max_hours:g} h, then the pod ends itself, whatever runs")


def _tell(order: Order, outcome: Outcome) -> None:
    if not outcome.running:
        output.note(f"the pod has ended; it cost about ${outcome.dollars:.2f}" if outcome.pod else "no pod was needed")
        output.done("checkpoint", order.out / "best", shlex.join(["kidspeech", "predict", str(order.out / "best"), "…"]))
        return
    output.note(f"the training goes on on pod {outcome.pod}, and the pod ends with it. To come back:")
    output.note(f"  {shlex.join(['kidspeech', *sys.argv[1:]])}   follows it, and fetches at the end")
    output.note("  kidspeech runpod status | logs -f | attach | tensorboard | stop")
