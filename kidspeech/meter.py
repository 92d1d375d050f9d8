"""
What people watch while a run goes: loss, speed, waiting, memory, and the bill so far.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from statistics import median
from typing import TypeVar

import torch
from accelerate import Accelerator

from kidspeech.batching import Step
from kidspeech.errors import TrainingError
from kidspeech.hardware import peak_memory
from kidspeech.loader import Side

T = TypeVar("T")


class Meter:
    """
    Figures since the last line of the log, and the medians of all lines.
    """

    def __init__(self, accelerator: Accelerator, side: Side, price_per_hour: float | None) -> None:
        self.accelerator, self.side, self.price = accelerator, side, price_per_hour
        self.begun = time.monotonic()
        self.lines: list[dict[str, float]] = []
        self.first = (0.0, 0)  # seconds and clips of the first line
        self.bad = 0
        """Steps in a row, up to the last line, whose loss is not finite."""
        self.left_out: list[str] = []
        """A sentence on each such step of the last line."""
        self._start_again()

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """
        Pass *batches* through, counting how long each was waited for: the most that a device can have stood idle for data.
        """
        iterator = iter(batches)
        while True:
            asked = time.monotonic()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self.waited += time.monotonic() - asked
            yield batch

    def add(self, step: Step, loss: torch.Tensor) -> None:
        """
        Count one step; the loss stays on the device, since fetching it would wait for the device.
        """
        self.steps.append(step)
        self.losses.append(loss)

    def pause(self) -> None:
        """
        Forget the time since the last line: it went into validation and saving.
        """
        self._start_again()

    def read(self, learning_rate: float) -> dict[str, float]:
        """
        Return the figures since the last line, over all devices, and start again.
        """
        losses: list[float] = self.accelerator.reduce(torch.stack(self.losses), "sum").tolist()  # waits for the device
        passed = time.monotonic() - self.started
        finite = [loss for loss in losses if math.isfinite(loss)]
        figures = {
            "loss": sum(finite) / len(finite) if finite else math.nan,
            "learning_rate": learning_rate,
            "clips_per_second": sum(len(step.clips) for step in self.steps) / passed,
            "audio_seconds_per_second": sum(float(self.side.seconds[step.clips].sum()) for step in self.steps) / passed,
            "waiting_for_data": self.waited / passed,
            "memory_gb": peak_memory(self.accelerator.device),
        }
        self._note_bad(losses)
        self.first = self.first if self.lines else (passed, sum(len(step.clips) for step in self.steps))
        self.lines.append(figures)
        self._start_again()
        return figures

    def check(self, most: int, *, over: bool) -> None:
        """
        Raises:
            TrainingError: the losses of the last *most* steps are not finite, or of the last one of a run that is *over*.
        """
        if self.bad >= most or (self.bad and over):
            msg = (
                f"{self.left_out[-1]}, as were the {self.bad - 1} before it; the newest checkpoint is from before: lower "
                "train.learning_rate, or look at these clips with kidspeech inspect"
            )
            raise TrainingError(msg)

    def line(self) -> str:
        """
        Return the last figures as one line.
        """
        last = self.lines[-1]
        words = [
            f"loss {last['loss']:.3f}",
            f"lr {last['learning_rate']:.1e}",
            f"{last['clips_per_second']:.1f} clips/s",
            f"{last['audio_seconds_per_second']:.0f} s audio/s",
        ]
        words += [f"{last['memory_gb']:.1f} GB"] if last["memory_gb"] else []
        words += [f"${(time.monotonic() - self.begun) / 3600 * self.price:.2f}"] if self.price else []
        return ", ".join(words)

    def medians(self) -> dict[str, float]:
        """
        Return the medians of speed and waiting over all lines but the first, what that one took beyond its steps since the
        run began (weights, a first validation, compiling), and the peak of memory in GB; nothing where no step was taken.
        """
        if not self.lines:
            return {}
        names = ("clips_per_second", "audio_seconds_per_second", "waiting_for_data")
        figures = {name: median(line[name] for line in self.lines[1:] or self.lines) for name in names}
        seconds, clips = self.first
        warm_up = seconds - clips / figures["clips_per_second"]
        return {name: round(value, 4) for name, value in figures.items()} | {
            "warm_up_seconds": round(warm_up, 1),
            "memory_gb": round(peak_memory(self.accelerator.device), 2),
        }

    def _note_bad(self, losses: list[float]) -> None:
        self.left_out = []
        for step, loss in zip(self.steps, losses, strict=True):
            self.bad = 0 if math.isfinite(loss) else self.bad + 1
            if self.bad:
                ids = self.side.texts("utterance_id")
                some = ", ".join(ids[clip] for clip in step.clips[:5]) + (", …" if len(step.clips) > 5 else "")
                self.left_out.append(f"the loss is {loss} at step {step.number + 1} ({some}): the step is left out")

    def _start_again(self) -> None:
        self.steps: list[Step] = []
        self.losses: list[torch.Tensor] = []
        self.waited = 0.0
        self.started = time.monotonic()
