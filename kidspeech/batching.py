"""
Which clips make an optimizer step, and how a step is shared out.

The plan of an epoch is a pure function of the clips' lengths and weights, the seed and the epoch's number. It knows nothing
of devices or memory, so a run that is resumed, on as many devices or not, goes on with exactly the clips that would have
come; and since the loss is divided by the targets of the whole step, how a step is cut into micro-batches changes no
gradient.

    plan_epoch -> steps of about effective_batch, clips of similar length together
    Plan       -> the steps of a whole run, from any of them on
    share      -> this device's micro-batches of a step, at most batch_seconds of padded audio each
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kidspeech.config import Batch, Train

Clips = NDArray[np.int64]
WINDOW = 64  # steps whose clips are sorted by length together: 7 % padding at the lengths of the contest, 250 % without


@dataclass(frozen=True)
class MicroBatch:
    """
    What one device takes at once.

    Attributes:
        clips: clip numbers.
        padded: with the context padded to the model's whole window.
        epoch: from 0; what is drawn for a clip differs from epoch to epoch.
        idle: for no loss, only to take part: this device had no clip left.
    """

    clips: Clips
    padded: bool = False
    epoch: int = 0
    idle: bool = False


@dataclass(frozen=True)
class Step:
    """
    One optimizer step of the plan.

    Attributes:
        number: in the run, from 0.
        epoch, place: the epoch, and the step's place in it, from 0.
        ends_epoch: whether it is the epoch's last.
        clips: clip numbers, sorted by length.
    """

    number: int
    epoch: int
    place: int
    ends_epoch: bool
    clips: Clips


class Plan:
    """
    The steps of a run.
    """

    def __init__(self, seconds: NDArray[np.float64], weights: NDArray[np.float64] | None, settings: Train) -> None:
        self.seconds, self.weights, self.settings = seconds, weights, settings
        whole, part = int(settings.epochs), settings.epochs % 1
        steps = sum(len(self._epoch(epoch)) for epoch in range(whole)) + math.ceil(part * len(self._epoch(whole)))
        self.total = settings.max_steps or max(steps, 1)

    def rest(self, number: int, epoch: int, place: int) -> Iterator[Step]:
        """
        Yield the steps from *number* on, which is the one at *place* of *epoch*.
        """
        for later in itertools.count(epoch):
            steps = self._epoch(later)
            for at in range(place, len(steps)):
                if number == self.total:
                    return
                yield Step(number, later, at, at + 1 == len(steps), steps[at])
                number += 1
            place = 0

    def _epoch(self, epoch: int) -> list[Clips]:
        batch, seed = self.settings.effective_batch, self.settings.seed
        return plan_epoch(self.seconds, batch, seed=seed, epoch=epoch, weights=self.weights)


def plan_epoch(
    seconds: NDArray[np.float64],
    effective: Batch,
    *,
    seed: int,
    epoch: int,
    weights: NDArray[np.float64] | None = None,
) -> list[Clips]:
    """
    Return the steps of one epoch, each an array of clip numbers; without weights every clip stands in exactly one.

    The clips are shuffled, sorted by length within windows of WINDOW steps, cut, and the steps shuffled again.

    Args:
        seconds: shape (n,), length of each clip.
        effective: what one step sees.
        seed: of the run.
        epoch: from 0.
        weights: shape (n,), how often each clip is to come in an epoch, see draws; once where not given.
    """
    random = np.random.default_rng([seed, epoch])
    clips = np.arange(len(seconds))
    order = random.permutation(clips if weights is None else np.repeat(clips, draws(weights, seed=seed, epoch=epoch)))
    cost = np.ones(len(seconds)) if effective.unit == "clips" else seconds
    windows = _cut(order, cost, effective.amount * WINDOW)
    steps = [
        step for window in windows for step in _cut(window[np.argsort(seconds[window], kind="stable")], cost, effective.amount)
    ]
    return [steps[place] for place in random.permutation(len(steps))]


def draws(weights: NDArray[np.float64], *, seed: int, epoch: int) -> NDArray[np.int64]:
    """
    Return how often each clip comes in *epoch*, shape (n,).

    A clip of weight w has come floor(w e + u) times after e epochs, with u in [0, 1) its own: 2 is twice each time, 0.5 every
    other time. The u of the clips of one weight are evenly spaced in a shuffled order, so that every epoch has the same
    share of them within one clip, and none comes twice more often than another.

    Args:
        weights: shape (n,), above 0.
        seed: of the run.
        epoch: from 0.
    """
    random = np.random.default_rng(seed)
    phase = np.empty(len(weights))
    for weight in np.unique(weights):
        alike = np.flatnonzero(weights == weight)
        phase[random.permutation(alike)] = (np.arange(len(alike)) + 0.5) / len(alike)
    passed = [np.floor(weights * epochs + phase) for epochs in (epoch, epoch + 1)]
    return (passed[1] - passed[0]).astype(np.int64)


def share(
    step: Clips, cost: Callable[[Clips], float], *, limit: float, rank: int, world: int, padded: bool, epoch: int = 0
) -> list[MicroBatch]:
    """
    Return the micro-batches of *step* for one of *world* devices; each device gets equally many.

    Longest clips come first, dealt out in turn, so that the devices finish together. A device that has fewer batches than
    another idles on the step's shortest clip, since all must take part when gradients are exchanged.

    Args:
        step: clip numbers, sorted by length.
        cost: of a micro-batch, in the unit of *limit* (seconds of padded audio).
        limit: what one device takes at once; a single clip above it goes alone.
        rank: this device, from 0.
        world: number of devices.
        padded, epoch: said of each micro-batch.
    """
    cut = [pack(step[::-1][place::world], cost, limit) for place in range(world)]
    idle = [MicroBatch(step[:1], padded, epoch, idle=True)] * (max(map(len, cut)) - len(cut[rank]))
    return [MicroBatch(clips, padded, epoch) for clips in cut[rank]] + idle


def pack(clips: Clips, cost: Callable[[Clips], float], limit: float) -> list[Clips]:
    """
    Cut *clips*, in their order, into batches of at most *limit*; a single clip above it goes alone.
    """
    batches: list[Clips] = []
    start = 0
    for end in range(1, len(clips) + 1):
        if end - start > 1 and cost(clips[start:end]) > limit:
            batches.append(clips[start : end - 1])
            start = end - 1
    return [*batches, clips[start:]] if len(clips) else batches


def _cut(clips: Clips, cost: NDArray[np.float64], amount: float) -> list[Clips]:
    # cut where the running cost passes the next multiple of *amount*: parts are right on average, none is empty
    passed = np.floor((np.cumsum(cost[clips]) - cost[clips] / 2) / amount)
    return np.split(clips, np.flatnonzero(np.diff(passed) > 0) + 1) if len(clips) else []
