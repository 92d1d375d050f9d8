"""
What a prediction is worth: the contest's normaliser, its WER and IPA CER, and how sure they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kidspeech.metrics.normaliser import normalise
from kidspeech.metrics.phonetic import normalise_ipa
from kidspeech.metrics.predictions import read_predictions, text_field
from kidspeech.metrics.result import Clip, Confusion, Difference, Group, Score, Silence
from kidspeech.metrics.score import compare, score

if TYPE_CHECKING:
    from kidspeech.metrics.child_wer import ChildWER

__all__ = [
    "ChildWER",
    "Clip",
    "Confusion",
    "Difference",
    "Group",
    "Score",
    "Silence",
    "compare",
    "normalise",
    "normalise_ipa",
    "read_predictions",
    "score",
    "text_field",
]


def __getattr__(name: str) -> Any:
    # evaluate imports torch and takes seconds; whoever only scores does without it
    if name == "ChildWER":
        from kidspeech.metrics.child_wer import ChildWER

        return ChildWER
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
