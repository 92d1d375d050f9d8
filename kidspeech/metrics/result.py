"""
What a score consists of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kidspeech.manifest import Utterance
from kidspeech.metrics.alignment import Alignment, Kind, Metric, Tally
from kidspeech.metrics.bootstrap import Interval


@dataclass(frozen=True, slots=True)
class Clip:
    """
    One utterance with its prediction, normalised and aligned.
    """

    utterance: Utterance
    reference: str
    prediction: str
    alignment: Alignment

    @property
    def tally(self) -> Tally:
        """
        What was counted in it.
        """
        return self.alignment.tally


@dataclass(frozen=True, slots=True)
class Group:
    """
    Clips that have something in common.
    """

    name: str
    clips: int
    exact: int
    """Clips without an error."""
    children: int | None
    """None where some clip does not say which child speaks."""
    tally: Tally
    interval: Interval | None
    """Of the rate, over children; None with fewer than two, or where they are not known."""

    @property
    def rate(self) -> float | None:
        """
        Errors per word (or character); None without clips.
        """
        return self.tally.rate if self.clips else None


@dataclass(frozen=True, slots=True)
class Silence:
    """
    Clips whose reference is empty: what a model hears there, it made up.
    """

    clips: int
    broken: int
    """Of them, clips with any prediction."""
    insertions: int


@dataclass(frozen=True, slots=True)
class Confusion:
    """
    One error, and how often it was made.
    """

    kind: Kind
    reference: str
    prediction: str
    count: int


@dataclass(frozen=True, slots=True)
class Score:
    """
    What `score` returns.
    """

    metric: Metric
    figure: float
    """The contest's figure, from jiwer."""
    total: Group
    by: Mapping[str, Sequence[Group]]
    """Groups by age_bucket, duration, corpus, session_id and child_id, as far as the references tell."""
    silence: Silence
    confusions: Sequence[Confusion]
    """The most frequent of each kind, by count."""
    clips: Sequence[Clip] = field(repr=False)
    """In the order of the references."""

    def worst(self, count: int) -> list[Clip]:
        """
        Return the clips that cost the figure most: by errors, then by rate. None without an error.
        """
        wrong = (clip for clip in self.clips if clip.tally.errors)
        return sorted(wrong, key=lambda clip: (-clip.tally.errors, -clip.tally.rate))[:count]


@dataclass(frozen=True, slots=True)
class Difference:
    """
    A score less another one over the same clips: below 0 it is the better one.
    """

    name: str
    other: float | None
    """The other's rate; None, as what follows, without clips."""
    difference: float | None
    interval: Interval | None
    """Of the difference; None as in Group."""
    probability: float | None
    """That this score is the better one: the share of draws in which it is, ties counting half."""
