"""
What is trained on: clips of the training side that are left out by the recipe's section choose, and copies of the others.

Validation never comes through here. What is left out is listed with its reason, like what can't be used at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from kidspeech.arrow_folder import Example
from kidspeech.cache import FeatureCache
from kidspeech.clips import Clip, Skipped
from kidspeech.config import Choose, Data
from kidspeech.data_config import Limits
from kidspeech.errors import DatasetError
from kidspeech.metrics import normalise, read_predictions
from kidspeech.metrics.alignment import Alignment, align
from kidspeech.models import BaseASRModel
from kidspeech.progress import Progress
from kidspeech.shards import Row
from kidspeech.speed import Sped

SHOWN = 3  # ids named in one message; the rest are counted


def choose(train: Sequence[Example], settings: Choose) -> tuple[list[Example], list[Skipped]]:
    """
    Return the examples of the training side to train on, and the others with the reason.

    Raises:
        ManifestError, ScoreError: the teacher's predictions can't be read.
        DatasetError: some are missing; or nothing is left.
    """
    texts = [normalise(example.utterance.orthographic_text) for example in train]
    over = _over(train, texts, settings)
    kept: list[Example] = []
    left_out: list[Skipped] = []
    for number, (example, text) in enumerate(zip(train, texts, strict=True)):
        reason = _reason(example.row.small["seconds"], len(text.split()), settings) or over.get(number)
        if reason is None:
            kept.append(example)
        else:
            left_out.append(_left_out(example, reason))
    if not kept:
        msg = f"the section choose leaves none of {len(train)} clips to train on; widen its limits"
        raise DatasetError(msg)
    return kept, left_out


def copies(
    train: Sequence[Example], settings: Choose, data: Data, model: BaseASRModel, cache: Path, progress: Progress
) -> tuple[list[Example], list[Skipped]]:
    """
    Return a copy of each example at each of the speeds, named id@speed, and those that would be too long.

    A copy is its child's, has the labels of its clip, and its seconds are those it lasts.
    """
    made: list[Example] = []
    left_out: list[Skipped] = []
    clips = [Clip(*(example.row.small[name] for name in ("path", "size", "mtime_ns"))) for example in train]
    for speed in settings.speeds:
        store = FeatureCache(cache, Sped(model.featurizer, speed))
        rows = store.rows(clips, progress, data.workers or os.cpu_count() or 1)
        for example, row in zip(train, rows, strict=True):
            copy = _copy(example, row, speed)
            problem = row.small["problem"] and f"copy {row.small['problem']}"
            if not problem and copy.row.small["seconds"] > data.max_seconds:
                problem = f"copy too long: {copy.row.small['seconds']:.1f} s, over data.max_seconds"
            if problem:
                left_out.append(_left_out(copy, problem))
            else:
                made.append(copy)
    return made, left_out


def _reason(seconds: float, words: int, settings: Choose) -> str | None:
    pace = words / max(seconds, 1e-3)
    limits = (
        ("min_seconds", seconds < settings.min_seconds, f"{seconds:.2f} s"),
        ("max_seconds", seconds > (settings.max_seconds or seconds), f"{seconds:.2f} s"),
        ("min_words_per_second", pace < settings.min_words_per_second, f"{words} words in {seconds:.1f} s"),
        ("max_words_per_second", pace > (settings.max_words_per_second or pace), f"{words} words in {seconds:.1f} s"),
    )
    return next((f"not chosen, {_word(name)} choose.{name}: {told}" for name, passed, told in limits if passed), None)


def _word(limit: str) -> str:
    return "under" if limit.startswith("min") else "over"


def _over(train: Sequence[Example], texts: Sequence[str], settings: Choose) -> dict[int, str]:
    """
    Return by number the examples that the teacher's errors leave out, with the reason.
    """
    if settings.teacher is None:
        return {}
    heard = _heard(Path(settings.teacher), train)
    ages = [example.utterance.age_bucket for example in train]
    found = []
    if settings.max_wer is not None:
        found.append(dict(_above("wer", align(heard, texts, "wer")[1], ages, settings.max_wer)))
    if settings.max_cer is not None:
        found.append(dict(_above("cer", align(heard, texts, "ipa_cer")[1], ages, settings.max_cer)))
    either = {number: reason for each in reversed(found) for number, reason in each.items()}
    both = [number for number in either if all(number in each for each in found)]
    return either if settings.join == "or" else {number: either[number] for number in both}


def _heard(path: Path, train: Sequence[Example]) -> list[str]:
    predictions = read_predictions(path)
    names = [example.utterance.utterance_id for example in train]
    if missing := [name for name in names if name not in predictions]:
        shown = ", ".join(missing[:SHOWN])
        msg = f"{path} has no prediction for {len(missing)} training utterances ({shown} …); let it predict them first"
        raise DatasetError(msg)
    return [normalise(predictions[name]) for name in names]


def _above(name: str, alignments: Sequence[Alignment], ages: Sequence[str], limits: Limits) -> Iterator[tuple[int, str]]:
    by_age = {str(name): limit for name, limit in limits.items()}
    for number, (alignment, age) in enumerate(zip(alignments, ages, strict=True)):
        rate, limit = alignment.tally.rate, by_age.get(age, by_age.get("default"))
        if limit is not None and rate > limit:
            yield number, f"not chosen, over choose.max_{name}: {rate:.2f}, and {age} may have {limit:g}"


def _copy(example: Example, row: Row, speed: float) -> Example:
    name = f"{example.utterance.utterance_id}@{speed:g}"
    seconds = example.row.small["seconds"] / speed
    utterance = replace(example.utterance, utterance_id=name, audio_duration_sec=round(seconds, 3))
    return Example(utterance, Row(row.shard, row.index, row.small | {"seconds": seconds}), example.labels, speed)


def _left_out(example: Example, reason: str) -> Skipped:
    return Skipped(example.utterance.utterance_id, example.row.small["path"], reason)
