"""
The pages' plots, drawn as SVG by hand: positions in per cent, so that they fit any width without a script.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Protocol

from kidspeech.metrics import Group

STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # between ticks of an axis
TICKS = 5  # at most, beside the zero
BIN = 0.1  # of the rate, in the histogram of children
SERIES = ("first", "second", "third")  # classes that colour what is drawn side by side
GROUND = 150  # px from the top to a histogram's base line
HIGHEST = 124  # px of its highest bar


class Spanned(Protocol):
    """
    What span() draws: a figure by name, and from where to where it reaches, if that is known.
    """

    @property
    def name(self) -> str:
        """
        Whose figure it is.
        """

    @property
    def rate(self) -> float | None:
        """
        The figure, 0 or more.
        """

    @property
    def interval(self) -> tuple[float, float] | None:
        """
        Low and high end.
        """


class Axis:
    """
    An axis of rates that begins at 0 and ends on a round number.
    """

    def __init__(self, top: float) -> None:
        step = next((step for step in STEPS if top <= step * TICKS), top / TICKS)
        count = max(1, -int(-top // step))
        self.top = step * count
        self.ticks = [step * number for number in range(count + 1)]

    def place(self, rate: float) -> str:
        """
        Return where *rate* stands, as a percentage of the width.
        """
        return f"{100 * rate / self.top:.2f}%"


def axis_of(groups: Sequence[Spanned]) -> Axis:
    """
    Return the axis that holds the rates of *groups* and their intervals.
    """
    return Axis(max([0.01, *(max(group.rate or 0, *(group.interval or (0,))) for group in groups)]))


def span(group: Spanned, axis: Axis, overall: float) -> str:
    """
    Draw a rate as a dot with its interval as a bar; the dot is open where no interval can be given.
    """
    if group.rate is None:
        return ""
    parts = [_upright(axis.place(overall), 26, "all")]
    if group.interval:
        low, high = (axis.place(end) for end in group.interval)
        parts.append(f'<line class="span" x1="{low}" x2="{high}" y1="13" y2="13"/>')
    dot = "" if group.interval else ' class="open"'
    parts.append(f'<circle{dot} cx="{axis.place(group.rate)}" cy="13" r="4.5"/>')
    says = f"{group.name}: {group.rate:.4f}" + (
        f", {group.interval[0]:.4f} to {group.interval[1]:.4f}" if group.interval else ""
    )
    return f'<svg height="26" role="img" aria-label="{escape(says)}">{"".join(parts)}</svg>'


def scale(axis: Axis) -> str:
    """
    Draw the ticks below a column of spans.
    """
    marks = "".join(
        f'{_upright(axis.place(tick), 5, "grid")}<text x="{axis.place(tick)}" y="20" text-anchor="middle">{tick:g}</text>'
        for tick in (round(tick, 6) for tick in axis.ticks)
    )
    return f'<svg height="24" aria-hidden="true"><line class="grid" x1="0" x2="100%" y1="0" y2="0"/>{marks}</svg>'


def bars(counts: Sequence[tuple[str, int]], what: str, *, at_edge: bool = False) -> str:
    """
    Draw a histogram of (label, count), the count above each bar, the label below its middle or *at_edge* at its start.
    """
    highest = max([1, *(count for _, count in counts)])
    width = 100 / len(counts)
    parts = []
    for number, (label, count) in enumerate(counts):
        height = 110 * count / highest
        middle = f"{width * (number + 0.5):.2f}%"
        box = f'x="{width * (number + 0.1):.2f}%" y="{130 - height:.1f}" width="{width * 0.8:.2f}%" height="{height:.1f}"'
        parts.append(f"<rect {box}/>" if count else "")
        parts.append(f'<text x="{middle}" y="{124 - height:.1f}" text-anchor="middle">{count or ""}</text>')
        below = f"{width * number:.2f}%" if at_edge else middle
        parts.append(f'<text x="{below}" y="148" text-anchor="middle">{escape(label)}</text>')
    says = escape(f"{what}: " + ", ".join(f"{label}: {count}" for label, count in counts))
    ground = '<line class="grid" x1="0" x2="100%" y1="130.5" y2="130.5"/>'
    return f'<svg height="154" role="img" aria-label="{says}">{"".join(parts)}{ground}</svg>'


def stack(parts: Sequence[tuple[str, float]], top: float) -> str:
    """
    Draw (label, amount) one after another as a bar; *top* is the amount that fills the width.
    """
    drawn, start = [], 0.0
    for (label, amount), kind in zip(parts, SERIES, strict=False):
        box = f'x="{100 * start / top:.2f}%" width="{100 * amount / top:.2f}%" y="6" height="14"'
        drawn.append(f'<rect class="{kind}" {box}><title>{escape(label)}</title></rect>' if amount else "")
        start += amount
    says = escape("; ".join(label for label, _ in parts))
    return f'<svg height="26" role="img" aria-label="{says}">{"".join(drawn)}</svg>'


def histogram(edges: Sequence[float], counts: Mapping[str, Sequence[int]], what: str, mark: tuple[float, str]) -> str:
    """
    Draw how each of *counts* is spread over the bins between *edges*, as shares of its own sum: the first as bars, the
    others as outlines over them. *mark* is a figure that gets a line, with its name.
    """
    shares = [[count / max(1, sum(side)) for count in side] for side in counts.values()]
    axis = Axis(max(map(max, shares)))
    bars = [_bin(place, edges, counts, shares[0][place] / axis.top) for place in range(len(edges) - 1)]
    outlines = [_outline(side, axis.top, kind) for side, kind in zip(shares[1:], SERIES[1:], strict=False) if any(side)]
    ground = f'<line class="grid" x1="0" x2="100%" y1="{GROUND + 0.5}" y2="{GROUND + 0.5}"/>'
    parts = [_levels(axis), *bars, *outlines, ground, _below(edges), _mark(*mark, edges)]
    return f'<svg height="{GROUND + 26}" role="img" aria-label="{escape(what)}">{"".join(parts)}</svg>'


def _bin(place: int, edges: Sequence[float], counts: Mapping[str, Sequence[int]], share: float) -> str:
    width = 100 / (len(edges) - 1)
    height = HIGHEST * share
    holds = ", ".join(f"{name} {side[place]:,}" for name, side in counts.items())
    says = f"<title>{edges[place]:g} to {edges[place + 1]:g}: {escape(holds)}</title>"
    box = f'x="{width * (place + 0.08):.2f}%" width="{width * 0.84:.2f}%"'
    bar = f'<rect class="first" {box} y="{GROUND - height:.1f}" height="{height:.1f}"/>' if height else ""
    return f'<g>{says}<rect class="hit" {box} y="{GROUND - HIGHEST}" height="{HIGHEST}"/>{bar}</g>'


def _outline(shares: Sequence[float], top: float, kind: str) -> str:
    # an SVG in the SVG, stretched: a path knows no percentages
    filled = [place for place, share in enumerate(shares) if share]
    steps = "".join(f"V{1 - shares[place] / top:.4f}H{place + 1}" for place in range(filled[0], filled[-1] + 1))
    box = f'y="{GROUND - HIGHEST}" width="100%" height="{HIGHEST}" viewBox="0 0 {len(shares)} 1" preserveAspectRatio="none"'
    return f'<svg {box}><path class="outline {kind}" vector-effect="non-scaling-stroke" d="M{filled[0]} 1{steps}V1"/></svg>'


def _levels(axis: Axis) -> str:
    heights = [(tick, GROUND - HIGHEST * tick / axis.top) for tick in axis.ticks[1:]]
    return "".join(
        f'<line class="faint" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="level" x="0" y="{y - 3:.1f}">{tick:.0%}</text>'
        for tick, y in heights
    )


def _below(edges: Sequence[float]) -> str:
    low, high = edges[0], edges[-1]
    scale = 10.0 ** math.floor(math.log10(high - low))
    step = next(scale * factor for factor in (0.1, 0.2, 0.5, 1, 2, 5) if high - low <= 6.5 * scale * factor)
    ticks = [low + step * number for number in range(math.floor((high - low) / step + 1e-6) + 1)]
    return "".join(
        f'<text x="{100 * (tick - low) / (high - low):.2f}%" y="{GROUND + 18}" text-anchor="{_anchor(tick, low, high)}">'
        f"{round(tick, 6):g}</text>".replace(">-", ">−")
        for tick in ticks
    )


def _anchor(tick: float, low: float, high: float) -> str:
    if tick <= low:
        return "start"
    return "end" if tick >= high else "middle"


def _mark(value: float, name: str, edges: Sequence[float]) -> str:
    place = 100 * min(1.0, max(0.0, (value - edges[0]) / (edges[-1] - edges[0])))
    x = f"{place:.2f}%"
    side = 'dx="-5" text-anchor="end"' if place > 60 else 'dx="5"'
    line = f'<line class="all" x1="{x}" x2="{x}" y1="0" y2="{GROUND}"/>'
    return f'{line}<text class="name" x="{x}" y="10" {side}>{escape(name)}</text>'


def spread(groups: Sequence[Group]) -> list[tuple[str, int]]:
    """
    Count *groups* by their rate, in bins of BIN, named by the edge they begin at and hold; the last takes all from 1.
    """
    edges = [round(BIN * number, 6) for number in range(round(1 / BIN) + 1)]
    rates = [group.rate for group in groups if group.rate is not None]
    inner = [(f"{low:g}", sum(low <= rate < high for rate in rates)) for low, high in pairwise(edges)]
    return [*inner, ("1", sum(rate >= edges[-1] for rate in rates))]


def errors_per_clip(errors: Sequence[int], most: int = 8) -> list[tuple[str, int]]:
    """
    Count clips by their number of errors, *most* and more together.
    """
    exact = [(str(number), sum(count == number for count in errors)) for number in range(most)]
    return [*exact, (f"{most}+", sum(count >= most for count in errors))]


def _upright(x: str, height: int, kind: str) -> str:
    return f'<line class="{kind}" x1="{x}" x2="{x}" y1="0" y2="{height}"/>'
