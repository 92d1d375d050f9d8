"""
How a figure is distributed: quantiles, and a histogram whose bins suit the figures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 40  # of a histogram, at most
TAIL = 0.995  # share of the clips that a long-tailed histogram shows one by one; its last bin holds the rest
LONG_TAIL = 1.3  # times the end of that share, up to which a tail is shown in full


@dataclass(frozen=True)
class Distribution:
    """
    How a figure is distributed over clips, or over children.

    Attributes:
        mean, low, p5, median, p95, high: of all; low and high are the extremes.
        edges: of the histogram's bins, one more than bins; the first and the last bin also hold what lies beyond.
        counts: number in each bin, by side.
    """

    mean: float
    low: float
    p5: float
    median: float
    p95: float
    high: float
    edges: list[float]
    counts: dict[str, list[int]]


def distribution(values: Mapping[str, NDArray[np.float64]], bins: tuple[float, float, float] | None = None) -> Distribution:
    """
    Return the distribution of *values*, 0 or more where no *bins* are given.

    Args:
        values: figures by side; any side may be empty, not all.
        bins: lower end, upper end and width of the bins; where not given, from 0 in round steps as fine as the number of
            figures allows.
    """
    everything = np.concatenate(list(values.values()))
    low, high, step = bins or _bins(everything)
    edges = low + step * np.arange(round((high - low) / step) + 1)
    least, p5, median, p95, most = (float(figure) for figure in np.quantile(everything, (0, 0.05, 0.5, 0.95, 1)))
    return Distribution(
        mean=float(everything.mean()),
        low=least,
        p5=p5,
        median=median,
        p95=p95,
        high=most,
        edges=[round(edge, 6) for edge in edges.tolist()],
        counts={name: _counted(side, edges) for name, side in values.items()},
    )


def _counted(values: NDArray[np.float64], edges: NDArray[Any]) -> list[int]:
    # what lies beyond an end is held by the bin there
    places = np.clip(np.searchsorted(edges, values, "right") - 1, 0, len(edges) - 2)
    counts: list[int] = np.bincount(places, minlength=len(edges) - 1).tolist()
    return counts


def _bins(values: NDArray[np.float64]) -> tuple[float, float, float]:
    # the finest round step with few enough bins: fewer for few values, or the plot shows only noise
    most = min(BINS, max(8, round(3 * len(values) ** (1 / 3))))
    tail, high = float(np.quantile(values, TAIL)), float(values.max())
    top = max(high if high <= LONG_TAIL * tail else tail, 1e-3)
    scale = 10.0 ** math.floor(math.log10(top / most))
    step = next(scale * factor for factor in (1, 2, 2.5, 5, 10) if top < most * scale * factor)
    return 0.0, step * (math.floor(top / step) + 1), step
