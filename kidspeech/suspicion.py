"""
Utterances worth a look before a model learns from them: rules over measured figures and transcripts, each with its reason.

A rule names what is unusual, not what is wrong: nothing is dropped for it. The thresholds are set so that the 1,160 clips of
read children's speech this was tried on raise none (0.2 to 3.0 words a second, -41 to -15 dBFS).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from kidspeech.clip_table import ClipTable

Found = Iterator[tuple[int, str]]

FASTEST = 6.0  # words a second
SLOWEST = 5.0  # seconds a word
LONG = 8.0  # seconds, from which SLOWEST counts
FULL_SCALE = 0.001  # share of the samples
QUIET = -55.0  # dBFS
REPEATS = 3  # of one transcript by one child
SENTENCE = 3  # words
DRIFT = 0.25  # seconds between manifest and measurement …
DRIFT_SHARE = 0.05  # … and share of the length

# digits, what brackets or marks something up, characters that come from a wrong encoding, and CHAT's unintelligible words
NOTATION = re.compile(
    r"<[^>]*>|\[[^\]]*\]|\([^)]*\)|[0-9]+|[\[\](){}<>*_#@/\\|^~=+&%$§]|[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffd]|Ã.|â€.|\b(?:xxx|yyy|www)\b"
)


@dataclass(frozen=True)
class Rule:
    """
    One kind of suspicion.

    Attributes:
        key: its name in JSON.
        title: its name for people.
        why: what it may mean, and why the threshold is where it is.
        find: gives number and particulars of each clip it meets.
    """

    key: str
    title: str
    why: str
    find: Callable[[ClipTable], Found]


def suspicions(clips: ClipTable) -> dict[int, dict[str, str]]:
    """
    Return, by clip, the key of each rule it meets and the particulars; clips are in order, clean ones left out.
    """
    found: dict[int, dict[str, str]] = defaultdict(dict)
    for rule in RULES:
        for clip, particulars in rule.find(clips):
            found[clip][rule.key] = particulars
    return dict(sorted(found.items()))


def decibels(amplitude: np.ndarray) -> np.ndarray:
    """
    Return *amplitude*, 1.0 at full scale, as dBFS; silence is -120.
    """
    return 20 * np.log10(np.maximum(amplitude.astype(np.float64), 1e-6))


def _fast(clips: ClipTable) -> Found:
    for clip in np.flatnonzero((clips.words > 1) & (clips.pace > FASTEST)).tolist():
        yield clip, f"{clips.words[clip]} words in {clips.seconds[clip]:.1f} s"


def _slow(clips: ClipTable) -> Found:
    slow = (clips.words > 0) & (clips.seconds > LONG) & (clips.seconds > SLOWEST * clips.words)
    for clip in np.flatnonzero(slow).tolist():
        yield clip, f"{_words(int(clips.words[clip]))} in {clips.seconds[clip]:.1f} s"


def _empty(clips: ClipTable) -> Found:
    for clip in np.flatnonzero(clips.words == 0).tolist():
        yield clip, "nothing is left"


def _clipped(clips: ClipTable) -> Found:
    for clip in np.flatnonzero(clips.clipped > FULL_SCALE).tolist():
        yield clip, f"{clips.clipped[clip]:.1%} of the samples"


def _quiet(clips: ClipTable) -> Found:
    level = decibels(clips.rms)
    for clip in np.flatnonzero(level < QUIET).tolist():
        yield clip, "digital silence" if clips.rms[clip] == 0 else f"{level[clip]:.0f} dBFS".replace("-", "−")


def _repeated(clips: ClipTable) -> Found:
    pairs = zip(clips.children, clips.normal, clips.words.tolist(), strict=True)
    spoken = [(child, text) if words >= SENTENCE else None for child, text, words in pairs]
    for same in _alike(spoken, REPEATS):
        for clip in same:
            yield clip, f"{len(same)} times by this child"


def _same_audio(clips: ClipTable) -> Found:
    for same in _alike([md5 or None for md5 in clips.md5s], 2):
        remarks = ["on both sides of the split"] if len({int(clips.side[clip]) for clip in same}) > 1 else []
        remarks += ["with other words"] if len({clips.normal[clip] for clip in same}) > 1 else []
        for clip in same:
            other = clips.ids[next(each for each in same if each != clip)]
            yield clip, ", ".join([f"as {other}" + f" and {len(same) - 2} more" * (len(same) > 2), *remarks])


def _notation(clips: ClipTable) -> Found:
    for clip, text in enumerate(clips.texts):
        if marks := dict.fromkeys(NOTATION.findall(text)):
            yield clip, " ".join(list(marks)[:6])


def _drift(clips: ClipTable) -> Found:
    off = np.abs(clips.said_seconds - clips.seconds)
    for clip in np.flatnonzero((off > DRIFT) & (off > DRIFT_SHARE * clips.seconds)).tolist():
        yield clip, f"{clips.said_seconds[clip]:.1f} s said, {clips.seconds[clip]:.1f} s measured"


def _alike(keys: Sequence[Hashable | None], least: int) -> Iterator[list[int]]:
    places: dict[Hashable, list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        if key is not None:
            places[key].append(place)
    return (same for same in places.values() if len(same) >= least)


def _words(count: int) -> str:
    return f"{count} word{'s' * (count != 1)}"


RULES = (
    Rule(
        "same_audio",
        "Same audio twice",
        "Equal bytes under two ids: counted twice, and on both sides of the split a leak. At most one transcript is right.",
        _same_audio,
    ),
    Rule(
        "empty",
        "Empty after normalisation",
        "The metric sees no words; all that a model says there is an error.",
        _empty,
    ),
    Rule(
        "fast",
        "Too many words",
        f"Over {FASTEST:g} words a second, as only adults reading fast: the transcript goes on after the audio was cut.",
        _fast,
    ),
    Rule(
        "slow",
        "Far too few words",
        f"Over {LONG:g} s long and {SLOWEST:g} s a word, longer than children pause: part is not transcribed, or is noise.",
        _slow,
    ),
    Rule(
        "clipped",
        "Clipped",
        f"Over {FULL_SCALE:.1%} of the samples at full scale: a peak set there has a few, this many are heard as distortion.",
        _clipped,
    ),
    Rule(
        "quiet",
        "Near silent",
        f"Below {QUIET:g} dBFS on average, the noise of a quiet room: the microphone was off.".replace("-", "−"),
        _quiet,
    ),
    Rule(
        "duration",
        "Another length than the manifest's",
        f"Off by over {DRIFT:g} s and {DRIFT_SHARE:.0%}, more than rounding: cut short, or another file of that name.",
        _drift,
    ),
    Rule(
        "notation",
        "Digits, brackets, tags",
        "A model learns them as written, while the metric spells them otherwise or drops them, brackets with their words.",
        _notation,
    ),
    Rule(
        "repeated",
        "Said over and over",
        f"{REPEATS} or more times the same {SENTENCE} words or more by one child: a prompt, or one transcript pasted on.",
        _repeated,
    ),
)
