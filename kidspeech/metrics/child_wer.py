"""
The word error rate as a metric of Hugging Face's evaluate. Imported where it is used: evaluate takes seconds to import.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import evaluate
from datasets import Features, Value

from kidspeech.metrics.alignment import Alignment, align, total
from kidspeech.metrics.normaliser import normalise


class ChildWER(evaluate.Metric):
    """
    Corpus WER exactly as the contest counts it, over texts normalised here.

    >>> ChildWER().compute(predictions=["the colour grey"], references=["the color gray"])["wer"]
    0.0

    No network and no files: it stays in memory, so every process of a run may have its own. Give it the texts of all
    processes, since a mean of WERs is not the WER.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"keep_in_memory": True, **settings})

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Word error rate after Whisper's English text normalisation, as On Top of Pasketti counts it.",
            citation="",
            inputs_description=(
                "predictions, references: texts in the same order. groups: optionally a name for each text, such as its age "
                'bucket; the result then has the same figures for each name, under "groups".'
            ),
            features=Features({"predictions": Value("string"), "references": Value("string")}),
        )

    def _build_data_dir(self) -> str:
        # evaluate makes a folder in the Hugging Face cache even for what stays in memory; in the contest's container and
        # on many clusters that place can't be written
        return str(self._data_dir_root)

    def _compute(
        self, predictions: Sequence[str], references: Sequence[str], groups: Sequence[str] | None = None
    ) -> dict[str, Any]:
        wer, clips = align([normalise(text) for text in predictions], [normalise(text) for text in references])
        found = _figures(clips) | {"wer": wer}
        if groups is None:
            return found
        members: dict[str, list[Alignment]] = {}
        for name, clip in zip(groups, clips, strict=True):
            members.setdefault(name, []).append(clip)
        return found | {"groups": {name: _figures(of_name) for name, of_name in members.items()}}


def _figures(clips: Sequence[Alignment]) -> dict[str, Any]:
    tally = total(clip.tally for clip in clips)
    return {
        "wer": tally.rate,
        "words": tally.units,
        "substitutions": tally.substitutions,
        "deletions": tally.deletions,
        "insertions": tally.insertions,
        "clips": len(clips),
        "exact": sum(clip.tally.errors == 0 for clip in clips),
    }
