"""
What a run tells of itself at its end: run.json.
"""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import accelerate
import datasets
import torch
import transformers
from accelerate import Accelerator

from kidspeech import __version__
from kidspeech.checkpoint import TrainState
from kidspeech.config import Recipe, as_dict
from kidspeech.errors import writing


@dataclass(frozen=True)
class RunResult:
    """
    What run.json says of a finished run.

    Attributes:
        steps: optimizer steps taken.
        best_step, best_wer: of the weights in best/.
        start_wer: before the first step, on the same children.
        seconds: spent in training and validation.
        history: one entry a validation.
        speed: medians of the log's lines: see kidspeech.meter.
        recipe, dataset, versions, machine: what made it.
    """

    steps: int
    best_step: int
    best_wer: float
    start_wer: float
    seconds: float
    history: list[dict[str, Any]]
    speed: dict[str, float]
    recipe: dict[str, Any]
    dataset: str
    versions: dict[str, str]
    machine: str


def result_of(state: TrainState, recipe: Recipe, dataset: str, accelerator: Accelerator, speed: dict[str, float]) -> RunResult:
    """
    Return what is to be said of a run that has ended in *state*.
    """
    libraries = {"kidspeech": __version__, "python": platform.python_version()}
    libraries |= {module.__name__: module.__version__ for module in (torch, transformers, accelerate, datasets)}
    return RunResult(
        steps=state.step,
        best_step=state.best_step,
        best_wer=float(state.best_wer or 0.0),
        start_wer=state.history[0]["wer"],
        seconds=round(state.seconds, 1),
        history=state.history,
        speed=speed,
        recipe=as_dict(recipe),
        dataset=dataset,
        versions=libraries,
        machine=_machine(accelerator),
    )


def write_result(run: Path, result: RunResult) -> None:
    """
    Write run.json, whole or not at all.

    Raises:
        StorageError: the disk is full or can't be written.
    """
    aside = run / "run.json.tmp"
    with writing(run / "run.json"):
        aside.write_text(json.dumps(asdict(result), indent=2), encoding="utf-8")
        aside.replace(run / "run.json")


def read_result(run: Path) -> RunResult | None:
    """
    Return what run.json says, or None for a run that has not ended.
    """
    path = run / "run.json"
    return RunResult(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def _machine(accelerator: Accelerator) -> str:
    if accelerator.device.type == "cuda":
        return f"{accelerator.num_processes} x {torch.cuda.get_device_name()}"
    return f"{torch.get_num_threads()} CPU cores"
