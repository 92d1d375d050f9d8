"""
What a model family is to the rest of kidspeech. A new family is one file with one subclass, and one line in MODELS.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kidspeech.config import Decode, Model
from kidspeech.features import Featurizer
from kidspeech.guards import Decoded, Transcript, guarded

Batch = dict[str, Any]
"""
What Collator makes: input_features (clips, rows, frames), n_frames (clips,) of each clip without padding, labels (clips,
tokens) padded with IGNORED, seconds (list). Batches adds draws (clips, numbers) where training augments.
"""
IGNORED = -100  # a label that carries no loss


class BaseASRModel(ABC):
    """
    A speech recogniser: created cheap, without weights, and loaded when it is needed.

    `prepare` needs only the featurizer and the labels, so it never reads weights. `network` is the torch module; the
    training loop replaces it by its accelerated wrapper, and everything here goes through it.
    """

    network: nn.Module

    def __init__(self, config: Model) -> None:
        self.config = config

    @property
    @abstractmethod
    def featurizer(self) -> Featurizer:
        """
        The function from samples to features.
        """

    @property
    @abstractmethod
    def label_settings(self) -> dict[str, Any]:
        """
        Everything the labels depend on besides the text.
        """

    @property
    @abstractmethod
    def max_labels(self) -> int:
        """
        The most labels a clip may have.
        """

    @abstractmethod
    def labels(self, texts: Sequence[str]) -> list[list[int]]:
        """
        Return the label ids of each transcript; many at once cost a tenth of one by one.
        """

    @abstractmethod
    def n_targets(self, n_labels: int) -> int:
        """
        Return how many of a clip's labels carry loss.
        """

    @abstractmethod
    def load(self) -> None:
        """
        Read or make the weights, in float32, on the CPU.

        Raises:
            CheckpointError: there are none where the recipe says.
        """

    @abstractmethod
    def compile(self) -> None:
        """
        Compile the layers that make up the network, each kind of layer once for all shapes.
        """

    @abstractmethod
    def loss(self, batch: Batch) -> torch.Tensor:
        """
        Return the loss summed (not averaged) over the batch's target labels, so that the caller can divide by the
        number of targets of a whole optimizer step, over all micro-batches and devices.
        """

    @abstractmethod
    def decode(self, batch: Batch, settings: Decode) -> list[Decoded]:
        """
        Return what the decoder makes of each clip, before any guard but the cap on tokens.
        """

    def transcribe(self, batch: Batch, settings: Decode) -> list[Transcript]:
        """
        Return what is said in each clip, and which guards acted.
        """
        return [guarded(decoded, settings) for decoded in self.decode(batch, settings)]

    def generate(self, batch: Batch, settings: Decode) -> list[str]:
        """
        Return one text per clip.
        """
        return [transcript.text for transcript in self.transcribe(batch, settings)]

    @abstractmethod
    def save(self, folder: Path, state: dict[str, torch.Tensor] | None = None) -> None:
        """
        Write what `from_pretrained` of plain transformers loads.

        Args:
            folder: to write into.
            state: the network's state dict, where it is not at hand in the network: FSDP's is gathered first.
        """

    @abstractmethod
    def frames(self, longest: int, *, padded: bool) -> int:
        """
        Return how many frames a batch takes whose longest clip has *longest*, with the context padded or trimmed.
        """

    def unwrapped(self) -> nn.Module:
        """
        Return the network without the wrappers of distributed training.
        """
        return getattr(self.network, "module", self.network)
