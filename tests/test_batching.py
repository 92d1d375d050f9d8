"""
Batching: every clip once an epoch, whatever the devices, and steps that never depend on them.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies

from kidspeech.batching import Clips, pack, plan_epoch, share
from kidspeech.config import Batch

pytestmark = pytest.mark.unit

lengths = strategies.lists(strategies.floats(0.1, 30), min_size=1, max_size=400).map(np.array)
batches = strategies.builds(Batch, amount=strategies.floats(1, 200), unit=strategies.sampled_from(["clips", "seconds"]))


@settings(deadline=None)
@given(lengths, batches, strategies.integers(0, 99), strategies.integers(0, 9))
def test_every_clip_stands_in_exactly_one_step(seconds: np.ndarray, effective: Batch, seed: int, epoch: int) -> None:
    """
    An epoch is each clip once, in steps none of which is empty.
    """
    steps = plan_epoch(seconds, effective, seed=seed, epoch=epoch)

    assert sorted(np.concatenate(steps)) == list(range(len(seconds)))
    assert all(len(step) for step in steps)


@settings(deadline=None)
@given(lengths, batches, strategies.integers(1, 5), strategies.floats(1, 300))
def test_devices_share_a_step_without_loss_or_repetition(
    seconds: np.ndarray, effective: Batch, world: int, limit: float
) -> None:
    """
    Over all devices each clip of a step counts once; all have equally many micro-batches, none above the limit.
    """

    def cost(clips: Clips) -> float:
        return len(clips) * float(seconds[clips].max())

    for step in plan_epoch(seconds, effective, seed=0, epoch=0):
        shares = [share(step, cost, limit=limit, rank=rank, world=world, padded=False) for rank in range(world)]
        counted = [micro.clips for micros in shares for micro in micros if not micro.idle]
        assert sorted(np.concatenate(counted)) == sorted(step)
        assert len({len(micros) for micros in shares}) == 1
        assert all(len(clips) == 1 or cost(clips) <= limit for clips in counted)


def test_steps_are_about_as_large_as_the_recipe_says() -> None:
    """
    1,000 clips in steps of 36 make 28 steps; 3,500 s in steps of 126 s the same.
    """
    seconds = np.full(1000, 3.5)

    assert len(plan_epoch(seconds, Batch(amount=36, unit="clips"), seed=0, epoch=0)) in (28, 29)
    assert len(plan_epoch(seconds, Batch(amount=126, unit="seconds"), seed=0, epoch=0)) in (28, 29)


def test_epochs_differ_and_repeat() -> None:
    """
    Another epoch has another order; the same epoch of the same seed has the same, which is what resuming rests on.
    """
    seconds = np.random.default_rng(0).uniform(1, 9, 500)
    plans = [plan_epoch(seconds, Batch(amount=20, unit="clips"), seed=3, epoch=epoch) for epoch in (0, 1, 0)]
    first, other, again = (np.concatenate(plan).tolist() for plan in plans)

    assert first == again
    assert first != other


def test_sorting_by_length_saves_most_of_the_padding() -> None:
    """
    On lengths like the contest's, padding within steps stays under a tenth; in random steps it is about half.
    """
    seconds = np.clip(np.random.default_rng(0).lognormal(1.2, 0.7, 20_000), 0.3, 30)
    steps = plan_epoch(seconds, Batch(amount=36, unit="clips"), seed=0, epoch=0)
    padded = sum(len(step) * seconds[step].max() for step in steps)

    assert padded / seconds.sum() < 1.1


@given(lengths, strategies.floats(0.5, 100))
def test_packing_keeps_the_order(seconds: np.ndarray, limit: float) -> None:
    """
    Batches for decoding are the given order, cut.
    """
    order = np.argsort(-seconds)
    packed = pack(order, lambda clips: float(seconds[clips].sum()), limit)

    assert np.concatenate(packed).tolist() == order.tolist()
    assert all(len(clips) == 1 or seconds[clips].sum() <= limit for clips in packed)
