"""
Clips into groups: by age, by length, and by what else the references tell.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

from kidspeech.manifest import AGE_BUCKETS
from kidspeech.metrics.alignment import total
from kidspeech.metrics.bootstrap import interval, per_child, resample
from kidspeech.metrics.result import Clip, Group

EDGES = (1, 2, 4, 8, 15, 30)  # seconds at which one bin of lengths ends and the next begins
DURATIONS = (f"under {EDGES[0]} s", *(f"{low}–{high} s" for low, high in pairwise(EDGES)), f"{EDGES[-1]} s and over")
AGES = tuple(name for name in AGE_BUCKETS if name != "unknown")


def groupings(clips: Sequence[Clip], corpora: Mapping[str, str]) -> dict[str, list[Group]]:
    """
    Return the groups by age_bucket and duration, and by corpus, session_id and child_id where they are known.

    All age groups are there, so that one without clips shows as such.
    """
    lengths = {duration_bin(clip.utterance.audio_duration_sec) for clip in clips}
    found = {
        "age_bucket": _groups(clips, lambda clip: clip.utterance.age_bucket, first=AGES),
        "duration": _groups(clips, _duration, first=[name for name in DURATIONS if name in lengths]),
    }
    if corpora:
        found["corpus"] = _groups(clips, lambda clip: corpora[clip.utterance.utterance_id])
    if any(clip.utterance.session_id for clip in clips):
        found["session_id"] = _groups(clips, lambda clip: clip.utterance.session_id or "unknown")
    if any(clip.utterance.child_id for clip in clips):
        found["child_id"] = _groups(clips, lambda clip: clip.utterance.child_id or "unknown")
    return found


def group(name: str, clips: Sequence[Clip]) -> Group:
    """
    Return what *clips* add up to.
    """
    children = per_child((clip.utterance.child_id, clip.tally.errors, clip.tally.units) for clip in clips)
    return Group(
        name=name,
        clips=len(clips),
        exact=sum(clip.tally.errors == 0 for clip in clips),
        children=len(children.units) if children else None,
        tally=total(clip.tally for clip in clips),
        interval=interval(resample(children)),
    )


def duration_bin(seconds: float | None) -> str:
    """
    Return the name of the bin for a clip of *seconds*; a bin holds its lower edge.
    """
    return "unknown" if seconds is None else DURATIONS[bisect_right(EDGES, seconds)]


def _duration(clip: Clip) -> str:
    return duration_bin(clip.utterance.audio_duration_sec)


def _groups(clips: Iterable[Clip], key: Callable[[Clip], str], first: Iterable[str] = ()) -> list[Group]:
    members: dict[str, list[Clip]] = {name: [] for name in first}
    for clip in clips:
        members.setdefault(key(clip), []).append(clip)
    return [group(name, of_name) for name, of_name in members.items()]
