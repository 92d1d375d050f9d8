"""
Validation by real generation: what the network says to the clips of children it never heard.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from kidspeech.batching import MicroBatch, pack
from kidspeech.config import Decode
from kidspeech.loader import Batches, Side
from kidspeech.models import BaseASRModel, Batch

SHOWN = 8  # transcripts in TensorBoard, always of the same clips


def transcribe(
    accelerator: Accelerator,
    model: BaseASRModel,
    side: Side,
    settings: Decode,
    *,
    padded: bool,
    tell: Callable[[int, int], None],
) -> list[str]:
    """
    Return the text of each clip of *side*, in its order, each device taking its part.

    Args:
        accelerator: whose devices take part.
        model: with its network.
        side: the clips.
        settings: section decode of the recipe.
        padded: whether the context is the model's whole window.
        tell: told how many of this device's clips are done.
    """
    order = np.argsort(-side.seconds, kind="stable")[accelerator.process_index :: accelerator.num_processes]
    batches = pack(order, lambda clips: side.padded_seconds(clips, model, padded=padded), settings.batch_seconds)
    made: list[tuple[int, str]] = []
    model.network.eval()
    for clips in batches:
        batch = to_device(Batches(side, model)[MicroBatch(clips, padded)], accelerator.device)
        with accelerator.autocast():
            made += zip(clips.tolist(), model.generate(batch, settings), strict=True)
        tell(len(made), len(order))
    model.network.train()
    return [text for _, text in sorted(gather_object(made))]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """
    Return *batch* with its tensors on *device*.
    """
    return {name: value.to(device, non_blocking=True) if torch.is_tensor(value) else value for name, value in batch.items()}


def shown_transcripts(side: Side, texts: list[str]) -> str:
    """
    Return a few transcripts beside their references, as a table in Markdown.
    """
    places = np.linspace(0, len(texts) - 1, min(SHOWN, len(texts))).round().astype(int)
    ids, references = side.texts("utterance_id"), side.texts("orthographic_text")
    rows = [f"| {ids[place]} | {references[place]} | {texts[place]} |" for place in places]
    return "\n".join(["| utterance | reference | heard |", "| --- | --- | --- |", *rows])
