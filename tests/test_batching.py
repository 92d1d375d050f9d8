"""
Batching: every clip once an epoch, whatever the devices, and steps that never depend on them.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies

from kidspeech.batching import Clips, draws, pack, plan_epoch, share
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
@given(
    strategies.lists(strategies.sampled_from([0.1, 0.5, 1.0, 1.5, 2.0]) | strategies.floats(0.01, 5), min_size=1).map(np.array)
)
def test_a_weight_is_how_often_a_clip_comes(weights: np.ndarray) -> None:
    """
    After any number of epochs each clip has come its weight times that number, within one; so have those of one weight.
    """
    passed = np.zeros(len(weights))
    for epoch in range(7):
        passed += draws(weights, seed=5, epoch=epoch)
        assert (abs(passed - weights * (epoch + 1)) < 1 + 1e-9).all()
        for weight in np.unique(weights):
            alike = weights == weight
            assert abs(passed[alike].sum() - weight * (epoch + 1) * alike.sum()) <= 1 + 1e-6


@settings(deadline=None)
@given(lengths, batches, strategies.integers(0, 9))
def test_weights_change_what_is_drawn_and_nothing_else(seconds: np.ndarray, effective: Batch, epoch: int) -> None:
    """
    Weights of one are no weights; others put each clip into the steps as often as it is drawn, each time by the same seed.
    """
    plan = [
        plan_epoch(seconds, effective, seed=3, epoch=epoch, weights=weights)
        for weights in (None, np.ones(len(seconds)), np.full(len(seconds), 2.0))
    ]
    assert [step.tolist() for step in plan[0]] == [step.tolist() for step in plan[1]]
    assert np.bincount(np.concatenate(plan[2])).tolist() == [2] * len(seconds)


def test_half_a_corpus_is_a_fresh_half_each_epoch() -> None:
    """
    Two epochs of a corpus of weight 0.5 hold each of its clips once, and the other corpus' clips twice.
    """
    weights = np.array([0.5] * 300 + [1.0] * 100)
    seconds = np.random.default_rng(0).uniform(1, 9, 400)
    batch = Batch(amount=20, unit="clips")
    plans = [np.concatenate(plan_epoch(seconds, batch, seed=3, epoch=epoch, weights=weights)) for epoch in (0, 1)]

    assert [np.sum(plan < 300) for plan in plans] == [150, 150]
    assert np.bincount(np.concatenate(plans)).tolist() == [1] * 300 + [2] * 100


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
