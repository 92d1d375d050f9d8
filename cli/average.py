"""
kidspeech average: several checkpoints into one.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from kidspeech.cli import output


def average(
    checkpoints: Annotated[
        list[str], Argument(metavar="CHECKPOINT...", help="Runs, step folders, checkpoints, LoRA adapters, or Hub ids.")
    ],
    out: Annotated[Path, Option("--out", help="The checkpoint folder to make.")],
    weight: Annotated[
        list[float] | None, Option("--weight", help="One for each checkpoint, in their order; all alike by default.")
    ] = None,
) -> None:
    """
    Average the weights of checkpoints of one architecture: often better than the best of them, at no cost in use.

    Of a run its best/ is taken. The result counts as trained on all children that any of them heard.

    **Examples**

        kidspeech average RUN-1 RUN-2 RUN-3 --out SOUP

        kidspeech average RUN/step-004000 RUN/step-004500 RUN/step-005000 --out SOUP

        kidspeech average RUN/best OTHER/best --weight 2 --weight 1 --out SOUP
    """
    from kidspeech.averaging import average as mean_of

    with output.progress() as progress:
        info = mean_of(checkpoints, out, weights=weight, progress=progress)
    output.note(f"{len(checkpoints)} checkpoints, {len(info.train_children)} children heard by one or more of them")
    output.done(
        "checkpoint", out, shlex.join(["kidspeech", "predict", str(out)]) + " M.jsonl --audio-dir … --out predictions.jsonl"
    )
