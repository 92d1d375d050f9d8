"""
The JSON of `kidspeech score --json`; this is its schema, and the only place that has it.

::

    metric      "wer" or "ipa_cer"
    intervals   level (0.95), resamples (10000), over ("child_id"): how every interval below was made
    total       a row, named "all"
    by          age_bucket, duration; corpus, session_id, child_id where the references tell: each a list of rows
    silence     clips without a word in the reference; broken: of them, with a prediction; insertions in those
    confusions  the 30 most frequent of each kind: kind ("substitute", "delete", "insert"), reference, prediction, count
    worst       the 20 clips with the most errors: utterance_id, child_id, age_bucket, audio_duration_sec,
                reference, prediction (both normalised), and the figures of a row from the metric on
    against     with --against, the difference to the other predictions over all clips and by age_bucket, a list of:
                name; other: its rate; difference: this rate less the other, below 0 this is the better one;
                interval of the difference; probability that this is the better one

    A row is    name, clips, exact: clips without an error; children, or null where some clip names no child;
                interval: [low, high] of the rate by bootstrap over children, or null with fewer than two of them;
                wer: errors per word, as the contest counts; words; substitutions; deletions; insertions.
                For "ipa_cer" the two names are ipa_cer and characters.

A rate is null where there are no clips; where the references hold no word, it is the bare number of errors, as in jiwer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from kidspeech.metrics.alignment import Metric, Tally
from kidspeech.metrics.bootstrap import LEVEL, RESAMPLES
from kidspeech.metrics.result import Clip, Difference, Group, Score

UNITS: dict[Metric, str] = {"wer": "words", "ipa_cer": "characters"}
WORST = 20


def as_record(score: Score, differences: Sequence[Difference] = ()) -> dict[str, Any]:
    """
    Return *score* as the plain data described above.
    """
    record = {
        "metric": score.metric,
        "intervals": {"level": LEVEL, "resamples": RESAMPLES, "over": "child_id"},
        "total": _row(score.total, score.metric),
        "by": {key: [_row(group, score.metric) for group in groups] for key, groups in score.by.items()},
        "silence": asdict(score.silence),
        "confusions": [asdict(confusion) for confusion in score.confusions],
        "worst": [_clip(clip, score.metric) for clip in score.worst(WORST)],
    }
    return record | ({"against": [asdict(difference) for difference in differences]} if differences else {})


def _row(group: Group, metric: Metric) -> dict[str, Any]:
    head = {"name": group.name, "clips": group.clips, "exact": group.exact, "children": group.children}
    return head | {"interval": group.interval} | _figures(group.rate, group.tally, metric)


def _clip(clip: Clip, metric: Metric) -> dict[str, Any]:
    keys = ("utterance_id", "child_id", "age_bucket", "audio_duration_sec")
    head = {key: getattr(clip.utterance, key) for key in keys}
    return head | {"reference": clip.reference, "prediction": clip.prediction} | _figures(clip.tally.rate, clip.tally, metric)


def _figures(rate: float | None, tally: Tally, metric: Metric) -> dict[str, Any]:
    counts = {"substitutions": tally.substitutions, "deletions": tally.deletions, "insertions": tally.insertions}
    return {metric: rate, UNITS[metric]: tally.units, **counts}
