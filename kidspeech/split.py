"""
The split: whole children on one side or the other, with the mix of age groups kept alike.

A random split over utterances lets the model hear every child, and told entrants of the contest 0.10 where the
leaderboard said 0.44. So the unit here is the child, and what was reached is part of the result.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from kidspeech.errors import SplitError


@dataclass(frozen=True)
class Split:
    """
    Which utterances validate, and what that means.

    Attributes:
        validation: shape (n,), True where an utterance is for validation.
        dropped: shape (n,), True where it is for neither side, since its child validates by name.
        shares: share of the utterances that validate, for "all" and for every stratum.
        notes: what a reader of the WER should know, in sentences.
    """

    validation: NDArray[np.bool_]
    dropped: NDArray[np.bool_]
    shares: dict[str, float]
    notes: list[str]


def split_by_child(
    children: Sequence[str], strata: Sequence[str], *, val_ratio: float, seed: int, tolerance: float = 1.0
) -> Split:
    """
    Draw whole children until *val_ratio* of the utterances validate, overall and in each stratum.

    Uses scikit-learn's StratifiedGroupKFold with round(1 / val_ratio) folds and takes the fold that comes nearest.

    Args:
        children: shape (n,), the child of each utterance.
        strata: shape (n,), its age group, say.
        val_ratio: share asked for, in (0, 0.5].
        seed: of the draw; the same seed gives the same split.
        tolerance: how far any share that can be reached may lie from val_ratio.

    Raises:
        SplitError: fewer than two children; or a share further off than *tolerance*.
    """
    child, stratum = np.asarray(children), np.asarray(strata)
    if len(np.unique(child)) < 2:
        msg = "the split needs two children at least, since a child on both sides makes the WER worthless; add children"
        raise SplitError(msg)
    lonely = [str(name) for name in np.unique(stratum) if len(np.unique(child[stratum == name])) < 2]
    folds = _folds(child, stratum, min(round(1 / val_ratio), len(np.unique(child))), seed)
    best = min(folds, key=lambda fold: _distance(fold, stratum, val_ratio))
    shares = _shares(best, stratum)
    _check(shares, lonely, val_ratio, tolerance)
    return Split(best, np.zeros(len(best), dtype=bool), shares, [_lonely_note(name, shares[name]) for name in lonely])


def split_by_ids(ids: Sequence[str], children: Sequence[str], strata: Sequence[str], *, val: set[str], drop: bool) -> Split:
    """
    Validate on the utterances named in *val*.

    Args:
        ids: shape (n,), the id of each utterance.
        children: shape (n,), its child.
        strata: shape (n,), its age group, say.
        val: ids to validate on.
        drop: leave the other utterances of those children out of training.

    Raises:
        SplitError: one side would be empty.
    """
    validation = np.array([name in val for name in ids], dtype=bool)
    child = np.asarray(children)
    shared = np.isin(child, child[validation]) & ~validation
    dropped = shared if drop else np.zeros_like(shared)
    if not validation.any() or not (~validation & ~dropped).any():
        msg = "the list of validation ids leaves one side of the split empty; name some utterances, and not all children"
        raise SplitError(msg)
    kept = int(shared.sum()) if not drop else 0
    note = f"{kept} training utterances are by children of the validation list, so its WER is too good to be true"
    return Split(validation, dropped, _shares(validation, np.asarray(strata)), [note] if kept else [])


def _folds(child: NDArray[np.str_], stratum: NDArray[np.str_], count: int, seed: int) -> list[NDArray[np.bool_]]:
    if np.unique(stratum, return_counts=True)[1].max() < count:  # scikit-learn refuses strata that are all this small
        stratum = np.zeros_like(stratum)
    splitter = StratifiedGroupKFold(n_splits=count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of strata with fewer utterances than folds: the shares below tell that better
        picked = [held for _, held in splitter.split(child, stratum, child)]
    masks = [np.zeros(len(child), dtype=bool) for _ in picked]
    for mask, held in zip(masks, picked, strict=True):
        mask[held] = True
    return [mask for mask in masks if mask.any()]


def _distance(mask: NDArray[np.bool_], stratum: NDArray[np.str_], ratio: float) -> float:
    return max(abs(share - ratio) for share in _shares(mask, stratum).values())


def _shares(mask: NDArray[np.bool_], stratum: NDArray[np.str_]) -> dict[str, float]:
    return {"all": float(mask.mean())} | {str(name): float(mask[stratum == name].mean()) for name in np.unique(stratum)}


def _check(shares: dict[str, float], lonely: list[str], ratio: float, tolerance: float) -> None:
    off = {name: share for name, share in shares.items() if name not in lonely and abs(share - ratio) > tolerance}
    if off:
        reached = ", ".join(f"{name} {share:.1%}" for name, share in off.items())
        msg = (
            f"whole children can't be split at {ratio:.0%} within {tolerance:.0%}: reached {reached}; "
            "raise data.split_tolerance, change data.val_ratio or data.seed, or give data.val_ids"
        )
        raise SplitError(msg)


def _lonely_note(name: str, share: float) -> str:
    side = "validation: nothing of this group is trained on" if share else "training: its WER is not measured"
    return f"group {name} has one child only, who is in {side}"
