"""
kidspeech train: a dataset to a checkpoint, through accelerate's launcher.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from kidspeech.cli import output
from kidspeech.cli.demo import own_dataset
from kidspeech.cli.options import GpuOpt, OverridesArg, RecipeArg, YesOpt, run_folder
from kidspeech.cli.remote import Where, train_on_runpod
from kidspeech.launcher import WORKER, launch, train_words
from kidspeech.runpod.clock import MAX_HOURS

if TYPE_CHECKING:
    from kidspeech.config import Recipe
    from kidspeech.run_record import RunResult

ON_POD = "With --remote"


def train(
    recipe: RecipeArg,
    overrides: OverridesArg = None,
    data: Annotated[
        str | None,
        Option("--data", help="Dataset folder or s3:// URL, made by kidspeech prepare; the recipe demo brings its own."),
    ] = None,
    out: Annotated[
        Path | None, Option("--out", help="Run folder, by default runs/RECIPE; a run that is there is resumed.")
    ] = None,
    debug: Annotated[bool, Option("--debug", help="Take 100 training and 20 validation clips.")] = False,
    force_restart: Annotated[
        bool, Option("--force-restart", help="Begin anew; a run that is there moves aside to RUN.1.")
    ] = False,
    num_processes: Annotated[int | None, Option("--num-processes", min=1, help="Processes (GPUs) on this machine.")] = None,
    price_per_hour: Annotated[
        float | None, Option("--price-per-hour", min=0, help="Of this machine, in dollars: shows the bill so far.")
    ] = None,
    remote: Annotated[Where | None, Option("--remote", help="Train on a rented GPU, and fetch the checkpoint.")] = None,
    gpu: GpuOpt = None,
    max_hours: Annotated[
        float, Option("--max-hours", help="When the pod ends, whatever runs.", rich_help_panel=ON_POD)
    ] = MAX_HOURS,
    detach: Annotated[bool, Option("--detach", help="Come back when the training runs.", rich_help_panel=ON_POD)] = False,
    yes: YesOpt = False,
    worker: Annotated[bool, Option(WORKER, hidden=True, help="Train in this process, which a launcher has started.")] = False,
) -> None:
    """
    Fine-tune, validate by WER, keep the best. The same command again resumes a run that was cut off.

    **Examples**

        kidspeech train whisper-small --data DATA --out RUN

        kidspeech train whisper-small --data DATA --out RUN --num-processes 4 train.learning_rate=3e-5 train.epochs=5

        kidspeech train whisper-small --data DATA --out TRY --debug

        kidspeech train whisper-small --data DATA --out RUN --remote runpod --max-hours 3

        kidspeech train demo --remote runpod

        accelerate launch --config_file cluster.yaml -m kidspeech.train whisper-small --data DATA --out RUN
    """
    from kidspeech.config import load_recipe

    settings = load_recipe(recipe, overrides or [])  # a typo should not cost the start of a launcher
    data, out = data or str(own_dataset(recipe, settings)), out or run_folder(Path(recipe).stem)
    if remote is not None:
        from kidspeech.remote_folder import local_folder
        from kidspeech.runpod.plan import Order

        with output.progress() as progress:
            folder = local_folder(data, progress=progress)
        order = Order(recipe, folder, out, tuple(overrides or ()), debug, force_restart, tuple(gpu or ()), max_hours)
        train_on_runpod(order, detach=detach, yes=yes)
    elif worker:
        _train_here(settings, data, out, debug=debug, force_restart=force_restart, price_per_hour=price_per_hour)
    else:
        words = train_words(
            recipe, data, out, overrides or (), debug=debug, force_restart=force_restart, price_per_hour=price_per_hour
        )
        if code := launch(words, num_processes):
            raise typer.Exit(code)


def _train_here(
    settings: Recipe, data: str, out: Path, *, debug: bool, force_restart: bool, price_per_hour: float | None
) -> None:
    from kidspeech.train import train as run_training

    with output.progress() as progress:
        result = run_training(
            settings,
            data,
            out,
            debug=debug,
            force_restart=force_restart,
            price_per_hour=price_per_hour,
            progress=progress,
        )
    if os.environ.get("RANK", "0") == "0":
        _show(result, data, out)


def _show(result: RunResult, data: str, out: Path) -> None:
    from kidspeech.remote_folder import local_folder

    rows = [[str(entry["step"]), f"{entry['wer']:.4f}", *_groups(entry)] for entry in result.history]
    output.table("WER on the validation children", ["step", "WER", *sorted(result.history[0]["groups"])], rows, to=output.ERR)
    output.note(
        f"before {result.start_wer:.4f}, best {result.best_wer:.4f} at step {result.best_step}, {result.seconds:.0f} s"
    )
    files = [str(local_folder(data) / "validation.jsonl"), "--audio-dir", "…", "--out", "predictions.jsonl"]
    output.done("checkpoint", out / "best", shlex.join(["kidspeech", "predict", str(out / "best")]) + " " + " ".join(files))


def _groups(entry: dict[str, dict[str, float]]) -> list[str]:
    return [f"{entry['groups'][name]:.4f}" for name in sorted(entry["groups"])]
