"""
kidspeech train --remote runpod: the plan, the question, and what to type next.
"""

from __future__ import annotations

import logging
import shlex
import signal
import sys
from enum import Enum
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from typer import Option

from kidspeech.cli import output

if TYPE_CHECKING:
    from kidspeech.runpod.launch import Outcome
    from kidspeech.runpod.plan import Order, Plan

GpuOpt = Annotated[
    list[str] | None, Option("--gpu", help="With --remote: GPU type; repeat it for more, in order of preference.")
]


class Where(str, Enum):  # noqa: UP042  typer shows the value of a str
    """
    Where GPUs are rented.
    """

    runpod = "runpod"


def train_on_runpod(order: Order, *, detach: bool, yes: bool) -> None:
    """
    Show what it may cost, ask, and carry it out.
    """
    from kidspeech.cli.runpod import fleet_of
    from kidspeech.runpod.launch import run
    from kidspeech.runpod.plan import make_plan

    if order.debug:
        logging.basicConfig(format="%(message)s")
        logging.getLogger("kidspeech").setLevel(logging.INFO)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _let_go)  # a terminal that is closed is like Ctrl-C: no pod stays behind unwatched
    with fleet_of(None) as fleet:
        output.note("1/7 checking")
        plan = make_plan(order, fleet.settings, fleet.api)
        _show(plan)
        if not yes and not typer.confirm("Go on?", err=True):
            raise typer.Exit(1)
        with output.progress() as progress:
            outcome = run(plan, fleet.api, detach=detach, progress=progress, on_line=output.note)
    _tell(plan, outcome)


def _show(plan: Plan) -> None:
    volume = plan.volume
    output.note(
        f"run {plan.run} of {plan.order.recipe} on the volume {volume.name} in {volume.data_center} ({volume.size} GB)"
    )
    for candidate in plan.candidates:
        output.note(f"  {candidate.gpu}: ${candidate.price:.2f} an hour, stock {candidate.stock.lower()}")
    way = "over S3, before anything bills" if plan.settings.s3 else "by rsync through the pod (S3 keys would do it before)"
    output.note(f"  data go {way}")
    output.note(f"at most ${plan.ceiling:.2f}: {plan.order.max_hours:g} h, then the pod ends itself, whatever runs")


def _tell(plan: Plan, outcome: Outcome) -> None:
    if not outcome.running:
        output.note(f"the pod has ended; it cost about ${outcome.dollars:.2f}" if outcome.pod else "no pod was needed")
        output.done(
            "checkpoint", plan.order.out / "best", shlex.join(["kidspeech", "predict", str(plan.order.out / "best"), "…"])
        )
        return
    output.note(f"the training goes on on pod {outcome.pod}, and the pod ends with it. To come back:")
    output.note(f"  {shlex.join(['kidspeech', *sys.argv[1:]])}   follows it, and fetches at the end")
    output.note("  kidspeech runpod status | logs -f | attach | tensorboard | stop")


def _let_go(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
