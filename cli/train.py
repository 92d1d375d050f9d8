"""
kidspeech train: a dataset to a checkpoint, through accelerate's launcher.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from kidspeech.cli import output
from kidspeech.cli.options import OverridesArg, RecipeArg
from kidspeech.cli.remote import GpuOpt, Where, train_on_runpod

if TYPE_CHECKING:
    from kidspeech.run_record import RunResult

DataOpt = Annotated[str, Option("--data", help="Dataset folder or s3:// URL, made by kidspeech prepare.")]
OutOpt = Annotated[Path, Option("--out", help="Run folder; a run that is there is resumed.")]
DebugOpt = Annotated[bool, Option("--debug", help="Take 100 training and 20 validation clips.")]
RestartOpt = Annotated[bool, Option("--force-restart", help="Begin anew; a run that is there moves aside to RUN.1.")]


def train(
    recipe: RecipeArg,
    data: DataOpt,
    out: OutOpt,
    overrides: OverridesArg = None,
    debug: DebugOpt = False,
    force_restart: RestartOpt = False,
    num_processes: Annotated[int | None, Option("--num-processes", min=1, help="Processes (GPUs) on this machine.")] = None,
    remote: Annotated[Where | None, Option("--remote", help="Train on a rented GPU, and fetch the checkpoint.")] = None,
    gpu: GpuOpt = None,
    max_hours: Annotated[float, Option("--max-hours", help="With --remote: when the pod ends, whatever runs.")] = 12.0,
    detach: Annotated[bool, Option("--detach", help="With --remote: come back when the training runs.")] = False,
    yes: Annotated[bool, Option("--yes", "-y", help="With --remote: don't ask before it costs.")] = False,
) -> None:
    """
    Fine-tune, validate by WER, keep the best. The same command again resumes a run that was cut off.

    **Examples**

        kidspeech train whisper-small --data DATA --out RUN

        kidspeech train whisper-small --data DATA --out RUN --num-processes 4 train.learning_rate=3e-5 train.epochs=5

        kidspeech train whisper-small --data DATA --out TRY --debug

        kidspeech train whisper-small --data DATA --out RUN --remote runpod --max-hours 3

        accelerate launch --config_file cluster.yaml -m kidspeech.train whisper-small --data DATA --out RUN
    """
    from kidspeech.config import load_recipe

    load_recipe(recipe, overrides or [])  # a typo should not cost the start of a launcher
    if remote is not None:
        from kidspeech.remote_folder import local_folder
        from kidspeech.runpod.plan import Order

        with output.progress() as progress:
            folder = local_folder(data, progress=progress)
        order = Order(recipe, folder, out, tuple(overrides or ()), debug, force_restart, tuple(gpu or ()), max_hours)
        train_on_runpod(order, detach=detach, yes=yes)
        return
    flags = [flag for flag, given in (("--debug", debug), ("--force-restart", force_restart)) if given]
    worker = [recipe, "--data", data, "--out", str(out), *flags, *(overrides or [])]
    _launch([*launcher_options(num_processes), "-m", "kidspeech.train", *worker])


def train_worker(
    recipe: RecipeArg,
    data: DataOpt,
    out: OutOpt,
    overrides: OverridesArg = None,
    debug: DebugOpt = False,
    force_restart: RestartOpt = False,
) -> None:
    """
    Train in this process, which a launcher has started.
    """
    from kidspeech.config import load_recipe
    from kidspeech.train import train as run_training

    settings = load_recipe(recipe, overrides or [])
    with output.progress() as progress:
        result = run_training(settings, data, out, debug=debug, force_restart=force_restart, progress=progress)
    if os.environ.get("RANK", "0") == "0":
        _show(result, data, out)


def launcher_options(num_processes: int | None) -> list[str]:
    """
    Return accelerate's options; where accelerate was configured and no number is given, its configuration holds.
    """
    if num_processes is None and _configured():
        return []
    count = num_processes or 1
    threads = max(1, (os.cpu_count() or 1) // count)
    options = ["--num_processes", str(count), "--num_machines", "1", "--num_cpu_threads_per_process", str(threads)]
    # "multi_gpu" is accelerate's word for torchrun; without a GPU the processes talk over gloo
    options += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    # a port of its own: left to accelerate, two runs that start together on one machine both take 29500, and one fails
    return [*options, "--multi_gpu", "--main_process_port", "0"] if count > 1 else options


def _launch(arguments: list[str]) -> None:
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        launch_command(launch_command_parser().parse_args(arguments))
    except subprocess.CalledProcessError as error:  # the process has said itself what is wrong
        raise typer.Exit(error.returncode) from None
    except ChildFailedError as error:
        raise typer.Exit(error.get_first_failure()[1].exitcode) from None


def _configured() -> bool:
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface")
    return any((home / "accelerate" / f"default_config.{kind}").is_file() for kind in ("yaml", "json"))


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
