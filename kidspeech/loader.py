"""
From a prepared dataset to batches: lengths in memory, features read from disk when a batch wants them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from kidspeech.augment import Draws
from kidspeech.batching import Clips, MicroBatch, Step, share
from kidspeech.collate import Collator
from kidspeech.config import Corpus, Recipe
from kidspeech.errors import DatasetError, TrainingError
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

    def __init__(self, side: Side, model: BaseASRModel, draws: Draws | None = None) -> None:
        self.side, self.model, self.draws = side, model, draws

    def __getitem__(self, micro: MicroBatch) -> Batch:
        """
        Return the batch; one that idles has no targets.
        """
        collate = Collator(self.model.featurizer.rows, lambda longest: self.model.frames(longest, padded=micro.padded))
        batch = collate([self.side[int(clip)] for clip in micro.clips])
        if micro.idle:
            batch["labels"].fill_(IGNORED)
        if self.draws is not None:
            batch["draws"] = torch.from_numpy(self.draws(micro.epoch, micro.clips))
        return batch


class MicroBatches:
    """
    How one device takes its part of each step: in micro-batches of at most *limit* seconds of padded audio.

    The limit may change as the run goes, by what the card holds; what a step computes does not.
    """

    def __init__(self, side: Side, model: BaseASRModel, recipe: Recipe, total: int, rank: int, world: int) -> None:
        self.side, self.model, self.context = side, model, recipe.model.context
        self.finish = total * (1 - recipe.train.padded_finish)
        self.rank, self.world, self.limit = rank, world, 0.0

    def share(self, step: Step) -> list[MicroBatch]:
        """
        Return this device's micro-batches of *step*.
        """
        padded = self._padded(step)
        cost = partial(self.side.padded_seconds, model=self.model, padded=padded)
        place = {"rank": self.rank, "world": self.world}
        return share(step.clips, cost, limit=self.limit, **place, padded=padded, epoch=step.epoch)

    def largest(self, seconds: float) -> MicroBatch:
        """
        Return *seconds* of the longest clips, over and over where there are few.
        """
        longest = np.argsort(-self.side.seconds, kind="stable")
        each = self.side.padded_seconds(longest[:1], self.model, padded=False)
        return MicroBatch(np.resize(longest, max(int(seconds / each), 1)))

    def halve(self, step: Step, error: Exception) -> None:
        """
        Make the limit half of what *step* did not fit with.

        Raises:
            TrainingError: a single clip is too much; or others wait for this device's gradients and can't be told.
        """
        smallest = self.side.padded_seconds(step.clips[-1:], self.model, padded=self._padded(step))
        if self.limit <= smallest or self.world > 1:
            msg = (
                f"out of memory at step {step.number + 1} with micro-batches of {self.limit:g} seconds; the newest checkpoint "
                f"is whole: go on with train.batch_seconds={max(self.limit / 2, 1):g} or model.gradient_checkpointing=true"
            )
            raise TrainingError(msg) from error
        self.limit = max(self.limit / 2, smallest)

    def _padded(self, step: Step) -> bool:
        return self.context == "padded" or step.number >= self.finish


def feed(
    steps: Iterator[Step], shares: Callable[[Step], list[MicroBatch]], batches: Batches, *, workers: int, pinned: bool
) -> Iterator[tuple[Step, list[Batch]]]:
    """
    Yield each step with this device's batches of it, read ahead across epochs.

    Args:
        steps: what is left of the plan.
        shares: from a step to this device's micro-batches.
        batches: reads and collates them.
        workers: processes that read ahead; 0 reads in this one.
        pinned: put batches where a GPU fetches them without waiting.
    """
    ahead, now = itertools.tee((step, shares(step)) for step in steps)
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=(micro for _, micros in ahead for micro in micros),
        num_workers=workers,
        pin_memory=pinned,
        generator=torch.Generator(),  # its own: a loader draws a seed, and a resumed run would draw another
    )
    ready = iter(loader)
    for step, micros in now:
        yield step, [next(ready) for _ in micros]


def _spread(side: Dataset, most: int) -> Dataset:
    clips = np.linspace(0, len(side) - 1, min(most, len(side))).round().astype(int)
    return side.select(clips).flatten_indices()
