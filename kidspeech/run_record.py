"""
What a run tells of itself: figures while it goes, and run.json at its end.
"""

from __future__ import annotations

import json
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import accelerate
import datasets
import torch
import transformers
from accelerate import Accelerator

from kidspeech import __version__
from kidspeech.batching import Clips
from kidspeech.checkpoint import TrainState
from kidspeech.config import Recipe, as_dict
from kidspeech.errors import writing
from kidspeech.loader import Side


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
        recipe, dataset, versions, machine: what made it.
    """

    steps: int
    best_step: int
    best_wer: float
    start_wer: float
    seconds: float
    history: list[dict[str, Any]]
    recipe: dict[str, Any]
    dataset: str
    versions: dict[str, str]
    machine: str


class Window:
    """
    Figures since the last line of the log.
    """

    def __init__(self) -> None:
        self.loss: torch.Tensor | float = 0.0
        self.steps, self.clips, self.audio = 0, 0, 0.0
        self.started = time.monotonic()

    def add(self, loss: torch.Tensor, side: Side, step: Clips) -> None:
        """
        Count one step; the loss stays on the device, since fetching it would wait for the device.
        """
        self.loss = self.loss + loss
        self.steps += 1
        self.clips += len(step)
        self.audio += float(side.seconds[step].sum())

    def figures(self, accelerator: Accelerator) -> dict[str, float]:
        """
        Return the means since the last call, over all devices, and start again.
        """
        passed = time.monotonic() - self.started
        loss = float(accelerator.reduce(torch.as_tensor(self.loss), "sum")) / self.steps
        rates = {"clips_per_second": self.clips / passed, "audio_seconds_per_second": self.audio / passed}
        self.__init__()  # type: ignore[misc]
        return {"loss": loss, **rates}


def result_of(state: TrainState, recipe: Recipe, dataset: str, accelerator: Accelerator) -> RunResult:
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
