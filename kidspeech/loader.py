"""
From a prepared dataset to batches: lengths in memory, features read from disk when a batch wants them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray

from kidspeech.batching import Clips, MicroBatch
from kidspeech.collate import Collator
from kidspeech.config import Corpus
from kidspeech.errors import DatasetError
from kidspeech.models import IGNORED, BaseASRModel, Batch

FRAMES_PER_SECOND = 100


class Side:
    """
    A side of the dataset by clip number: lengths in memory, features read from disk on use.
    """

    def __init__(self, side: Dataset, model: BaseASRModel, most: int | None) -> None:
        self.whole = side.data
        self.table = self.whole if most is None else _spread(side, most).data
        self.seconds = self.table.column("seconds").to_numpy()
        self.n_frames = self.table.column("n_frames").to_numpy()
        lengths = [len(ids) for ids in self.table.column("labels")]
        self.n_targets = np.array([model.n_targets(length) for length in lengths])

    def __len__(self) -> int:
        return len(self.seconds)

    def padded_seconds(self, clips: Clips, model: BaseASRModel, *, padded: bool) -> float:
        """
        Return the seconds of audio that *clips* take as one batch, padding included.
        """
        return len(clips) * model.frames(int(self.n_frames[clips].max()), padded=padded) / FRAMES_PER_SECOND

    def weights(self, corpora: Mapping[str, Corpus]) -> NDArray[np.float64] | None:
        """
        Return how often each clip is drawn in an epoch, or None where all are drawn once.

        Raises:
            DatasetError: a weight is for a corpus that is not in here.
        """
        asked = {name: corpus.weight for name, corpus in corpora.items() if corpus.weight != 1}
        if not asked:
            return None
        there = self.whole.column("corpus").unique().to_pylist()
        if unknown := sorted(set(asked) - set(there)):
            msg = f"data.corpora.{unknown[0]}.weight: the dataset has no such corpus to train on; it has {', '.join(there)}"
            raise DatasetError(msg)
        return np.array([asked.get(name, 1.0) for name in self.texts("corpus")])

    def texts(self, column: str) -> list[str]:
        """
        Return a text column.
        """
        values: list[str] = self.table.column(column).to_pylist()
        return values

    def __getitem__(self, clip: int) -> dict[str, Any]:
        """
        Return one clip as kidspeech.collate.Collator takes it.
        """
        features, labels = self.table.column("input_features")[clip], self.table.column("labels")[clip]
        return {
            "input_features": features.values.to_numpy(),
            "labels": labels.values.to_numpy(),
            "seconds": self.seconds[clip],
        }


class Batches(torch.utils.data.Dataset[Batch]):
    """
    Collated micro-batches, by MicroBatch.
    """

    def __init__(self, side: Side, model: BaseASRModel) -> None:
        self.side, self.model = side, model

    def __getitem__(self, micro: MicroBatch) -> Batch:
        """
        Return the batch; one that idles has no targets.
        """
        collate = Collator(self.model.featurizer.rows, lambda longest: self.model.frames(longest, padded=micro.padded))
        batch = collate([self.side[int(clip)] for clip in micro.clips])
        if micro.idle:
            batch["labels"].fill_(IGNORED)
        return batch


def _spread(side: Dataset, most: int) -> Dataset:
    clips = np.linspace(0, len(side) - 1, min(most, len(side))).round().astype(int)
    return side.select(clips).flatten_indices()
