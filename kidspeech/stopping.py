"""
Stopping on request: SIGTERM (a pod or scheduler that ends) and SIGINT (Ctrl-C) let a run save itself first.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import Accelerator

SIGNALS = (signal.SIGTERM, signal.SIGINT)
AGREE_EVERY = 8  # steps between the processes' asking each other: it waits for the devices, and 8 steps take seconds


class Stop:
    """
    Whether somebody asked this run to stop; the second request of a kind ends the process as it would without this.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.received: str | None = None
        self._before: dict[signal.Signals, Callable[..., Any] | int | None] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # only there does Python allow handlers
            self._before = {each: signal.signal(each, self._note) for each in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def agreed(self, step: int) -> bool:
        """
        Return whether to stop after *step*, the same answer in every process.
        """
        if self.accelerator.num_processes == 1:
            return self.received is not None
        if step % AGREE_EVERY:
            return False
        asked = torch.tensor(float(self.received is not None), device=self.accelerator.device)
        return bool(self.accelerator.reduce(asked, "sum") > 0)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        signal.signal(number, self._before[signal.Signals(number)])
