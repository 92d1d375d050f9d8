"""
A score: the contest's figure, and what a researcher asks next. Which children, how sure, what was taken for what.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from kidspeech.errors import ScoreError
from kidspeech.manifest import TextField, Utterance
from kidspeech.metrics.alignment import Metric, Step, align, total
from kidspeech.metrics.bootstrap import interval, per_child, resample, share_below
from kidspeech.metrics.groups import group, groupings
from kidspeech.metrics.normaliser import normalise
from kidspeech.metrics.phonetic import normalise_ipa
from kidspeech.metrics.predictions import check_ids
from kidspeech.metrics.result import Clip, Confusion, Difference, Score, Silence
from kidspeech.progress import Progress, silent

CONFUSIONS = 30  # kept of each kind
QUICK = 10_000  # clips scored within seconds, without a word on the progress
NORMALISERS: dict[Metric, Callable[[str], str]] = {"wer": normalise, "ipa_cer": normalise_ipa}
METRICS: dict[TextField, Metric] = {"orthographic_text": "wer", "phonetic_text": "ipa_cer"}


def score(
    predictions: Mapping[str, str],
    references: Sequence[Utterance],
    *,
    text_field: TextField = "orthographic_text",
    corpora: Mapping[str, str] | None = None,
    progress: Progress = silent,
) -> Score:
    """
    Score *predictions*, a text for each utterance id, against *references*.

    Args:
        text_field: what the predictions hold: words are compared for orthographic_text, characters for phonetic_text.
        corpora: where there are several, the corpus of each utterance id.

    Raises:
        ScoreError: ids are missing, extra or doubled, with their number and first examples.
    """
    check_ids(predictions, references)
    metric = METRICS[text_field]
    told = progress if len(references) > QUICK else silent
    said, heard = [], []
    for number, utterance in enumerate(references, start=1):
        said.append(NORMALISERS[metric](getattr(utterance, text_field)))
        heard.append(NORMALISERS[metric](predictions[utterance.utterance_id]))
        if number % 1000 == 0 or number == len(references):
            told("normalising", number, len(references))
    figure, alignments = align(heard, said, metric)
    clips = [Clip(*parts) for parts in zip(references, said, heard, alignments, strict=True)]
    return Score(
        metric=metric,
        figure=figure,
        total=group("all", clips),
        by=groupings(clips, corpora or {}),
        silence=_silence(clips),
        confusions=_confusions(clips),
        clips=clips,
    )


def compare(ours: Score, other: Score) -> list[Difference]:
    """
    Return how *ours* differs from *other*: over all clips, then by age group.

    The same children are drawn for both, so that what is hard for both cancels out.

    Raises:
        ScoreError: the two are not over the same utterances and metric.
    """
    if ours.metric != other.metric or [c.utterance for c in ours.clips] != [c.utterance for c in other.clips]:
        msg = "only scores of the same metric over the same references can be compared"
        raise ScoreError(msg)
    pairs = list(zip(ours.clips, other.clips, strict=True))
    by_age: dict[str, list[tuple[Clip, Clip]]] = {each.name: [] for each in ours.by["age_bucket"]}
    for pair in pairs:
        by_age[pair[0].utterance.age_bucket].append(pair)
    return [_difference(name, of_name) for name, of_name in [("all", pairs), *by_age.items()]]


def _silence(clips: Sequence[Clip]) -> Silence:
    empty = [clip for clip in clips if not clip.tally.units]
    made_up = [clip.tally.insertions for clip in empty]
    return Silence(clips=len(empty), broken=sum(count > 0 for count in made_up), insertions=sum(made_up))


def _confusions(clips: Sequence[Clip]) -> list[Confusion]:
    counts: Counter[Step] = Counter()
    for clip in clips:
        if clip.tally.errors:
            counts.update(step for step in clip.alignment.steps() if step.kind != "equal")
    found = [Confusion(*step, count=count) for step, count in counts.most_common()]
    kinds = ("substitute", "delete", "insert")
    kept = [one for kind in kinds for one in [each for each in found if each.kind == kind][:CONFUSIONS]]
    return sorted(kept, key=lambda one: (-one.count, one.kind, one.reference, one.prediction))


def _difference(name: str, pairs: Sequence[tuple[Clip, Clip]]) -> Difference:
    if not pairs:
        return Difference(name, None, None, None, None)
    rows = [(a.utterance.child_id, a.tally.errors - b.tally.errors, a.tally.units) for a, b in pairs]
    rates = resample(per_child(rows))
    ours, other = total(a.tally for a, _ in pairs), total(b.tally for _, b in pairs)
    return Difference(
        name=name,
        other=other.rate,
        difference=ours.rate - other.rate,
        interval=interval(rates),
        probability=share_below(rates),
    )
