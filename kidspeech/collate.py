"""
From rows to a batch: padding only, it decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kidspeech.models.base import IGNORED, Batch


@dataclass(frozen=True)
class Collator:
    """
    Pads features with each clip's own silence and labels with IGNORED.

    Attributes:
        rows: first dimension of the features (mel bands).
        frames: from the longest clip's frames to the batch's.
    """

    rows: int
    frames: Callable[[int], int]

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        """
        Return a batch of *examples*, dicts with flat float16 input_features, seconds and (in training) labels.

        A row's minimum is the value of silence: see kidspeech.features.n_frames_of.
        """
        clips = [example["input_features"].reshape(self.rows, -1) for example in examples]
        frames = self.frames(max(clip.shape[1] for clip in clips))
        features = np.empty((len(clips), self.rows, frames), dtype=np.float32)
        for place, clip in zip(features, clips, strict=True):
            place[:, : clip.shape[1]] = clip
            place[:, clip.shape[1] :] = clip.min()
        batch: Batch = {
            "input_features": torch.from_numpy(features),
            "n_frames": torch.tensor([clip.shape[1] for clip in clips]),
            "seconds": [example["seconds"] for example in examples],
        }
        if "labels" in examples[0]:
            batch["labels"] = _padded([example["labels"] for example in examples])
        return batch


def with_silence(features: torch.Tensor, frames: int) -> torch.Tensor:
    """
    Return *features*, shape (clips, rows, any), continued to *frames* with each clip's silence, on the device they are on.

    The same numbers as a Collator's with so many frames, and a tenth of the bytes to carry to a GPU.
    """
    silence = features.amin(dim=(1, 2), keepdim=True).expand(-1, features.shape[1], frames - features.shape[2])
    return torch.cat([features, silence], dim=2)


def _padded(labels: Sequence[NDArray[np.int32]]) -> torch.Tensor:
    padded = np.full((len(labels), max(map(len, labels))), IGNORED, dtype=np.int64)
    for place, ids in zip(padded, labels, strict=True):
        place[: len(ids)] = ids
    return torch.from_numpy(padded)
