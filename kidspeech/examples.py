"""
Which utterances of a manifest can be used: its file is there and whole, its text fits; the others are named with a reason.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from kidspeech.arrow_folder import Example
from kidspeech.cache import FeatureCache
from kidspeech.clips import Clip, Skipped
from kidspeech.config import Data
from kidspeech.manifest import Utterance
from kidspeech.models import BaseASRModel
from kidspeech.progress import Progress
from kidspeech.reading import audio_problem

TEXTS = 1000  # tokenised in one call


def featurize(
    utterances: Sequence[Utterance],
    clips: dict[str, Clip],
    model: BaseASRModel,
    data: Data,
    cache: Path,
    progress: Progress,
) -> tuple[list[Example], list[Skipped]]:
    """
    Return an example for every utterance that can be used, and the others with the reason.

    Args:
        utterances: of a manifest.
        clips: the file of each, from locate; utterances without one are left out.
        model: gives featurizer and labels; its weights are not needed.
        data: limits on length, whether to verify, number of workers.
        cache: folder of the feature cache.
        progress: told of the work.
    """
    found = [utterance for utterance in utterances if utterance.utterance_id in clips]
    workers = data.workers or os.cpu_count() or 1
    rows = FeatureCache(cache, model.featurizer).rows([clips[u.utterance_id] for u in found], progress, workers)
    all_labels = _labels([utterance.orthographic_text for utterance in found], model)
    examples: list[Example] = []
    skipped: list[Skipped] = []
    most = model.max_labels
    for utterance, row, labels in zip(found, rows, all_labels, strict=True):
        reason = audio_problem(utterance, row.small, data)
        reason = reason or _text_problem(utterance, labels, most)
        if reason is None:
            examples.append(Example(utterance, row, labels))
        else:
            skipped.append(Skipped(utterance.utterance_id, row.small["path"], reason))
    return examples, skipped


def _labels(texts: Sequence[str], model: BaseASRModel) -> list[list[int]]:
    batches = (texts[start : start + TEXTS] for start in range(0, len(texts), TEXTS))
    return [labels for batch in batches for labels in model.labels(batch)]


def _text_problem(utterance: Utterance, labels: list[int], most: int) -> str | None:
    if not utterance.orthographic_text.strip():
        return "empty text"
    return f"text too long: {len(labels)} tokens, and the model takes {most}" if len(labels) > most else None
