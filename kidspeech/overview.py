"""
What is in a prepared dataset: amounts, distributions, words, what was skipped, and what looks suspicious.

`as_record` gives all of it for JSON under the names of the dataclasses below; lengths are in seconds or hours as named,
levels in dBFS (0 is full scale).
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kidspeech.clip_table import ClipTable, read_clips, read_object
from kidspeech.distribution import Distribution, distribution
from kidspeech.errors import DatasetError
from kidspeech.manifest import AGE_BUCKETS, read_jsonl
from kidspeech.progress import Progress, silent
from kidspeech.suspicion import RULES, decibels, suspicions

FREQUENT = 100  # words
SAMPLES = 3  # clips of each age group, to listen to
LOUDNESS = (-60.0, 0.0, 2.0)  # dBFS: lowest, highest, step


@dataclass(frozen=True)
class Amount:
    """
    How much there is.
    """

    utterances: int
    hours: float
    children: int


@dataclass(frozen=True)
class Group:
    """
    How much there is of an age group or corpus: in all, by split, and how many words a second they speak.
    """

    total: Amount
    sides: dict[str, Amount]
    pace: Distribution


@dataclass(frozen=True)
class Words:
    """
    The transcripts, normalised as the metric does.

    Attributes:
        total: words, counted each time.
        vocabulary: different words.
        once: of these, said once only.
        empty: utterances without a word.
        sentences: different transcripts.
        frequent: the most frequent words, with their number.
        unheard: share of the words outside training that training does not have; None where there are none.
        heard_sentences: share of the utterances outside training whose transcript training has; None where there are none.
    """

    total: int
    vocabulary: int
    once: int
    empty: int
    sentences: int
    frequent: list[tuple[str, int]]
    unheard: float | None
    heard_sentences: float | None


@dataclass(frozen=True)
class Shown:
    """
    One utterance, with the suspicions it raises: the particulars by the key of the rule in kidspeech.suspicion.
    """

    utterance_id: str
    audio_path: str
    side: str
    child_id: str
    age_bucket: str
    seconds: float
    words: int
    rms_dbfs: float
    text: str
    reasons: dict[str, str]


@dataclass(frozen=True)
class Overview:
    """
    A prepared dataset at a glance.

    Attributes:
        total, sides: amounts; *sides* by split.
        ages: by age group; groups without a clip are left out.
        corpora: by corpus, where they have names.
        seconds, words_per_second, rms_dbfs, peak_dbfs: over clips.
        minutes: of speech, over children.
        sampling_rates, channels: number of clips by Hz and by channels of the file.
        at_full_scale: clips with any sample there.
        words: the transcripts.
        skipped: utterances that could not be used, by kind of reason.
        suspected: clips that meet each rule.
        suspects: those clips.
        samples: some clips of each age group, drawn by their ids, the same each time.
        notes: what prepare noted.
    """

    total: Amount
    sides: dict[str, Amount]
    ages: dict[str, Group]
    corpora: dict[str, Group]
    seconds: Distribution
    words_per_second: Distribution
    rms_dbfs: Distribution
    peak_dbfs: Distribution
    minutes: Distribution
    sampling_rates: dict[int, int]
    channels: dict[int, int]
    at_full_scale: int
    words: Words
    skipped: dict[str, int]
    suspected: dict[str, int]
    suspects: list[Shown]
    samples: list[Shown]
    notes: list[str]


def read_overview(folder: Path, progress: Progress = silent) -> Overview:
    """
    Look at the prepared dataset *folder*; its features are not read.

    Raises:
        DatasetError: it is no prepared dataset, or damaged, or without clips.
        ManifestError: the manifest lines beside it can't be read.
    """
    notes = [str(note) for note in read_object(folder / "prepare.json").get("notes", [])]
    skipped = _skipped(folder / "skipped.jsonl")
    return overview_of(read_clips(folder, progress), skipped=skipped, notes=notes)


def overview_of(clips: ClipTable, *, skipped: Mapping[str, int], notes: Sequence[str] = ()) -> Overview:
    """
    Return the figures of *clips*.
    """
    everyone = np.ones(len(clips.ids), bool)
    ages, corpora = np.array(clips.ages), np.array(clips.corpora)
    present = [age for age in AGE_BUCKETS if (ages == age).any()]
    found = suspicions(clips)
    suspects = [_shown(clips, clip, reasons) for clip, reasons in found.items()]
    return Overview(
        total=_amount(clips, everyone),
        sides=_by_side(clips, everyone),
        ages={age: _group(clips, ages == age) for age in present},
        corpora={name: _group(clips, corpora == name) for name in sorted({*clips.corpora} - {""})},
        seconds=_over_clips(clips, clips.seconds),
        words_per_second=_over_clips(clips, clips.pace),
        rms_dbfs=_over_clips(clips, decibels(clips.rms), LOUDNESS),
        peak_dbfs=_over_clips(clips, decibels(clips.peak), LOUDNESS),
        minutes=_minutes(clips),
        sampling_rates=_tally(clips.sampling_rate),
        channels=_tally(clips.channels),
        at_full_scale=int((clips.clipped > 0).sum()),
        words=_words(clips),
        skipped=dict(skipped),
        suspected={rule.key: sum(rule.key in reasons for reasons in found.values()) for rule in RULES},
        suspects=suspects,
        samples=[_shown(clips, clip, found.get(clip, {})) for age in present for clip in _drawn(clips, ages == age)],
        notes=list(notes),
    )


def as_record(overview: Overview) -> dict[str, Any]:
    """
    Return *overview* for JSON.
    """
    return asdict(overview)


def _skipped(path: Path) -> dict[str, int]:
    problems: list[str] = []
    reasons = Counter(str(record.get("reason", "")).split(":")[0] for _, record in read_jsonl(path, problems))
    if problems:
        msg = f"{problems[0]}; the dataset is damaged: run kidspeech prepare again"
        raise DatasetError(msg)
    return dict(reasons.most_common())


def _amount(clips: ClipTable, chosen: NDArray[np.bool_]) -> Amount:
    places = np.flatnonzero(chosen).tolist()
    hours = math.fsum(clips.seconds[chosen].tolist()) / 3600
    return Amount(len(places), hours, len({clips.children[place] for place in places}))


def _by_side(clips: ClipTable, chosen: NDArray[np.bool_]) -> dict[str, Amount]:
    return {name: _amount(clips, chosen & (clips.side == number)) for number, name in enumerate(clips.sides)}


def _group(clips: ClipTable, chosen: NDArray[np.bool_]) -> Group:
    return Group(_amount(clips, chosen), _by_side(clips, chosen), distribution({"all": clips.pace[chosen]}))


def _over_clips(clips: ClipTable, values: NDArray[np.float64], bins: tuple[float, float, float] | None = None) -> Distribution:
    return distribution({name: values[clips.side == number] for number, name in enumerate(clips.sides)}, bins)


def _minutes(clips: ClipTable) -> Distribution:
    seconds: list[dict[str, float]] = [defaultdict(float) for _ in clips.sides]
    for child, side, length in zip(clips.children, clips.side.tolist(), clips.seconds.tolist(), strict=True):
        seconds[side][child] += length
    return distribution({name: np.array(list(found.values())) / 60 for name, found in zip(clips.sides, seconds, strict=True)})


def _tally(values: NDArray[Any]) -> dict[int, int]:
    return dict(sorted(Counter(values.tolist()).items()))


def _words(clips: ClipTable) -> Words:
    trained = [text for text, side in zip(clips.normal, clips.side, strict=True) if side == 0]
    others = [text for text, side in zip(clips.normal, clips.side, strict=True) if side != 0]
    known, new = _count(trained), _count(others)
    both = known + new
    sentences = set(trained) - {""}
    return Words(
        total=both.total(),
        vocabulary=len(both),
        once=sum(count == 1 for count in both.values()),
        empty=int((clips.words == 0).sum()),
        sentences=len(set(clips.normal) - {""}),
        frequent=sorted(both.items(), key=lambda pair: (-pair[1], pair[0]))[:FREQUENT],
        unheard=sum(count for word, count in new.items() if word not in known) / new.total() if new else None,
        heard_sentences=sum(text in sentences for text in others) / len(others) if others else None,
    )


def _count(texts: Sequence[str]) -> Counter[str]:
    return Counter(chain.from_iterable(text.split() for text in texts))


def _drawn(clips: ClipTable, chosen: NDArray[np.bool_]) -> list[int]:
    # by a hash of the id: as good as at random, and the same page each time
    places = np.flatnonzero(chosen).tolist()
    return sorted(places, key=lambda place: hashlib.sha256(clips.ids[place].encode()).digest())[:SAMPLES]


def _shown(clips: ClipTable, clip: int, reasons: Mapping[str, str]) -> Shown:
    return Shown(
        clips.ids[clip],
        clips.audio_paths[clip],
        clips.sides[clips.side[clip]],
        clips.children[clip],
        clips.ages[clip],
        float(clips.seconds[clip]),
        int(clips.words[clip]),
        float(decibels(clips.rms[clip : clip + 1])[0]),
        clips.texts[clip],
        dict(reasons),
    )
