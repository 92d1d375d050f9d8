"""
The split: no child on both sides, the mix of ages alike, and honest about what was reached.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies

from kidspeech.errors import SplitError
from kidspeech.split import split_by_child, split_by_ids

pytestmark = pytest.mark.unit


def corpus(children: int, clips: int) -> tuple[list[str], list[str]]:
    """
    Return child and age group of *children* times *clips* utterances, four groups in turn.
    """
    names = [f"C{child}" for child in range(children) for _ in range(clips)]
    groups = [("3-4", "5-7", "8-11", "12+")[child % 4] for child in range(children) for _ in range(clips)]
    return names, groups


def test_shares_are_near_what_was_asked_in_every_group() -> None:
    """
    58 children of 20 clips at one fifth: every age group within five points.
    """
    children, groups = corpus(58, 20)
    split = split_by_child(children, groups, val_ratio=0.2, seed=0, tolerance=0.05)

    assert set(split.shares) == {"all", "3-4", "5-7", "8-11", "12+"}
    assert all(abs(share - 0.2) <= 0.05 for share in split.shares.values())
    assert split.shares["all"] == pytest.approx(split.validation.mean())


sizes = strategies.lists(strategies.integers(1, 30), min_size=2, max_size=40)


@settings(max_examples=60, deadline=None)
@given(sizes, strategies.sampled_from([0.1, 0.2, 0.34, 0.5]), strategies.integers(0, 1000), strategies.randoms())
def test_no_child_is_ever_on_both_sides(sizes: list[int], ratio: float, seed: int, random: np.random.Generator) -> None:
    """
    Whatever the children's sizes and ages: both sides exist, and share no child.
    """
    children = [f"C{child}" for child, size in enumerate(sizes) for _ in range(size)]
    groups = [random.choice(["3-4", "5-7"]) for _ in children]
    split = split_by_child(children, groups, val_ratio=ratio, seed=seed)
    held = {child for child, out in zip(children, split.validation, strict=True) if out}
    heard = {child for child, out in zip(children, split.validation, strict=True) if not out}

    assert held
    assert heard
    assert not held & heard


def test_the_seed_decides() -> None:
    """
    The same seed gives the same children, another seed others.
    """
    children, groups = corpus(40, 5)
    first, again, other = (split_by_child(children, groups, val_ratio=0.2, seed=seed).validation for seed in (1, 1, 2))

    assert (first == again).all()
    assert (first != other).any()


def test_one_child_only_is_refused() -> None:
    """
    One child can't be on two sides.
    """
    with pytest.raises(SplitError, match="two children at least"):
        split_by_child(["C1"] * 9, ["3-4"] * 9, val_ratio=0.1, seed=0)


def test_a_share_out_of_reach_is_refused_with_the_remedy() -> None:
    """
    Two children of 90 and 10 clips can't be split at a half.
    """
    with pytest.raises(SplitError, match=r"reached all 10\.0%.*data\.split_tolerance"):
        split_by_child(["A"] * 90 + ["B"] * 10, ["x"] * 100, val_ratio=0.5, seed=0, tolerance=0.05)


def test_a_group_of_one_child_is_told_not_hidden() -> None:
    """
    An age group with a single child is on one side only, and the split says so.
    """
    children, groups = corpus(20, 5)
    split = split_by_child([*children, *["L"] * 5], [*groups, *["unknown"] * 5], val_ratio=0.2, seed=0, tolerance=0.1)

    assert len(split.notes) == 1
    assert "group unknown has one child only" in split.notes[0]


def test_named_ids_validate_and_their_children_are_dropped_from_training() -> None:
    """
    A list of ids takes those utterances; the others of their children are in neither side, unless asked for.
    """
    ids, children = ["a", "b", "c", "d"], ["X", "X", "Y", "Y"]
    strict = split_by_ids(ids, children, ["g"] * 4, val={"a"}, drop=True)
    loose = split_by_ids(ids, children, ["g"] * 4, val={"a"}, drop=False)

    assert strict.validation.tolist() == loose.validation.tolist() == [True, False, False, False]
    assert strict.dropped.tolist() == [False, True, False, False]
    assert not loose.dropped.any()
    assert "1 training utterances are by children of the validation list" in loose.notes[0]


def test_a_list_that_leaves_nothing_to_train_on_is_refused() -> None:
    """
    Naming one utterance of every child leaves no training side.
    """
    with pytest.raises(SplitError, match="leaves one side"):
        split_by_ids(["a", "b"], ["X", "X"], ["g"] * 2, val={"a"}, drop=True)
