"""
Starting a training: the words for it, and accelerate's launcher, here as on a pod.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path

import psutil

WORKER = "--worker"
"""Tells `kidspeech train` that a launcher has started it; `python -m kidspeech.train` puts it in."""


def train_words(
    recipe: str,
    data: str | PathLike[str],
    out: str | PathLike[str],
    overrides: Sequence[str] = (),
    *,
    debug: bool = False,
    force_restart: bool = False,
    price_per_hour: float | None = None,
) -> list[str]:
    """
    Return what follows `kidspeech train`.
    """
    flags = [flag for flag, given in (("--debug", debug), ("--force-restart", force_restart)) if given]
    flags += ["--price-per-hour", f"{price_per_hour:g}"] if price_per_hour is not None else []
    return [recipe, "--data", str(data), "--out", str(out), *flags, *overrides]


def launch(words: Sequence[str], num_processes: int | None = None) -> int:
    """
    Train in processes that accelerate starts, and return the exit code; on a failure one of them has said why.

    Args:
        words: from train_words.
        num_processes: one a device; None for what `accelerate config` wrote, or one.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    arguments = [*launcher_options(num_processes), "-m", "kidspeech.train", *words]
    try:
        with _signals_are_the_trainings():
            launch_command(launch_command_parser().parse_args(arguments))
    except subprocess.CalledProcessError as error:
        return error.returncode
    except ChildFailedError as error:
        return int(error.get_first_failure()[1].exitcode)
    return 0


@contextlib.contextmanager
def _signals_are_the_trainings() -> Iterator[None]:
    """
    Pass SIGTERM on to the training, and leave Ctrl-C to it, which has it from the terminal: it saves itself and ends, and
    then this process does. Where torch's agent runs several processes, it sets handlers of its own that do the same.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {signal.SIGTERM: _pass_on, signal.SIGINT: lambda *_: None}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _pass_on(number: int, _: object) -> None:
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            child.send_signal(number)


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


def _configured() -> bool:
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface")
    return any((home / "accelerate" / f"default_config.{kind}").is_file() for kind in ("yaml", "json"))
