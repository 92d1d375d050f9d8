"""
An exponential moving average of the weights, to validate with and to keep.

After step t the average a follows the weights w as a <- d a + (1 - d) w with d = min(decay, (1 + t) / (10 + t)), the warm-up
of TensorFlow's ExponentialMovingAverage, without which the first weights would weigh on a short run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class WeightAverage:
    """
    The average of a network's trained weights, in float32 on their device: four bytes a parameter.
    """

    def __init__(self, network: torch.nn.Module, decay: float) -> None:
        self.weights = [weight for weight in network.parameters() if weight.requires_grad]
        self.average = [weight.detach().clone() for weight in self.weights]
        self.decay = decay

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not read by mypy here
    def update(self, step: int) -> None:
        """
        Follow the weights after *step* optimizer steps.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.average, [weight.detach() for weight in self.weights], 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """
        Put the average in the network's place for as long as the block lasts.
        """
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state_dict(self) -> dict[str, Any]:
        """
        Return the average.
        """
        return {"average": self.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Take it back.
        """
        for mine, theirs in zip(self.average, state["average"], strict=True):
            mine.copy_(theirs)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _swap(self) -> None:
        for weight, average in zip(self.weights, self.average, strict=True):
            kept = weight.detach().clone()
            weight.copy_(average)
            average.copy_(kept)
