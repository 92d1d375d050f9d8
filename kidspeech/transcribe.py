"""
The engine under predict and under a submission: audio files to transcripts, longest first, in batches of seconds.

Which clips make a batch depends on nothing but the list of clips and the settings, so that a run that was cut off and goes on
decodes the very batches that an unbroken one does. Audio is read ahead of the decoding; a clip that can't be used has the
empty text and its reason.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import compress
from typing import Any

import numpy as np
import torch

from kidspeech.batching import pack
from kidspeech.clips import Clip
from kidspeech.collate import Collator, with_silence
from kidspeech.config import Recipe
from kidspeech.features import HOP, SAMPLE_RATE, n_frames_of
from kidspeech.guards import Transcript
from kidspeech.manifest import Utterance
from kidspeech.models import BaseASRModel, Batch
from kidspeech.read_ahead import read_ahead
from kidspeech.reading import audio_problem, seconds_of

NO_ROOM = "does not fit into the device's memory, even alone"


@dataclass(frozen=True)
class Made:
    """
    What became of one utterance: its text and the guards that acted, or why its audio can't be used.
    """

    utterance_id: str
    text: str = ""
    guards: tuple[str, ...] = ()
    problem: str | None = None

    def as_line(self) -> dict[str, Any]:
        """
        Return it as plain data, which Made(**line) reads back.
        """
        return asdict(self)


Wanted = tuple[Utterance, Clip]


def is_padded(recipe: Recipe) -> bool:
    """
    Return whether to decode with the whole window: auto does so for every checkpoint that was not trained on less.
    """
    wanted = recipe.model.context if recipe.decode.context == "auto" else recipe.decode.context
    return wanted == "padded"


def transcribe(
    wanted: Sequence[Wanted],
    model: BaseASRModel,
    recipe: Recipe,
    *,
    have: Collection[str] = frozenset(),
    until: float = math.inf,
) -> Iterator[list[Made]]:
    """
    Yield what became of each batch's utterances.

    Args:
        wanted: utterances and their files.
        model: created, not loaded yet: it goes to the GPU in half precision, or stays on the CPU in float32.
        recipe: of the checkpoint, with what was laid over it.
        have: ids that were made before; a batch of which all are there is left out.
        until: of time.monotonic(): no batch is begun later.

    Raises:
        CheckpointError: the weights can't be read.
    """
    batches = plan(wanted, model, recipe, roomy=torch.cuda.is_available())
    batches = [batch for batch in batches if not all(utterance.utterance_id in have for utterance, _ in batch)]
    rows = read_ahead([[clip for _, clip in batch] for batch in batches], model.featurizer, recipe.data.workers)
    if batches:
        prepared(model)
    for batch in batches:
        if time.monotonic() > until:
            break
        yield _made(batch, next(rows), model, recipe)


def plan(wanted: Sequence[Wanted], model: BaseASRModel, recipe: Recipe, *, roomy: bool) -> list[list[Wanted]]:
    """
    Return the batches: longest first, since a batch that may not fit should come at once, and what a deadline cuts off at the
    end is short.
    """
    padded = is_padded(recipe)
    frames = np.array([_frames(utterance, clip, model) for utterance, clip in wanted])

    def seconds(clips: np.ndarray[Any, np.dtype[np.int64]]) -> float:
        return len(clips) * model.frames(int(frames[clips[0]]), padded=padded) * HOP / SAMPLE_RATE

    order = np.argsort(-frames, kind="stable")
    return [[wanted[clip] for clip in clips] for clips in pack(order, seconds, recipe.decode.seconds_at_once(roomy=roomy))]


def _frames(utterance: Utterance, clip: Clip, model: BaseASRModel) -> int:
    seconds = seconds_of(clip) if utterance.audio_duration_sec is None else utterance.audio_duration_sec
    return n_frames_of(round(min(seconds, model.featurizer.max_seconds) * SAMPLE_RATE))


def prepared(model: BaseASRModel) -> BaseASRModel:
    """
    Return *model* with its weights, on the GPU in half precision, or on the CPU in float32 where there is none.

    Raises:
        CheckpointError: the weights can't be read.
    """
    model.load()
    model.network.eval()
    if torch.cuda.is_available():
        model.network.to("cuda", torch.float16)
    return model


def _made(batch: Sequence[Wanted], rows: Sequence[Mapping[str, Any]], model: BaseASRModel, recipe: Recipe) -> list[Made]:
    problems = [audio_problem(utterance, row, recipe.data) for (utterance, _), row in zip(batch, rows, strict=True)]
    heard = in_pieces(list(compress(rows, [problem is None for problem in problems])), model, recipe)
    transcripts = iter(heard)
    made = []
    for (utterance, _), problem in zip(batch, problems, strict=True):
        transcript = Transcript("") if problem else next(transcripts)
        problem = problem or (NO_ROOM if transcript is None else None)
        text, guards = (transcript.text, transcript.guards) if transcript else ("", ())
        made.append(Made(utterance.utterance_id, text, guards, problem))
    return made


def in_pieces(rows: Sequence[Mapping[str, Any]], model: BaseASRModel, recipe: Recipe) -> list[Transcript | None]:
    """
    Return a transcript a row, from one batch or, where the device's memory does not hold it, from halves of it.

    None stands for a clip that does not fit even alone.
    """
    if not rows:
        return []
    try:
        return [*model.transcribe(_batch(rows, model, recipe), recipe.decode)]
    except torch.OutOfMemoryError:
        if len(rows) == 1:
            return [None]
    torch.cuda.empty_cache()  # outside the except: the error holds the frames that hold the memory
    half = len(rows) // 2
    return [*in_pieces(rows[:half], model, recipe), *in_pieces(rows[half:], model, recipe)]


def _batch(rows: Sequence[Mapping[str, Any]], model: BaseASRModel, recipe: Recipe) -> Batch:
    batch = Collator(model.featurizer.rows, lambda longest: model.frames(longest, padded=False))(rows)
    weights = next(model.network.parameters())
    features = batch["input_features"].to(weights.device, weights.dtype)
    frames = model.frames(features.shape[2], padded=is_padded(recipe))
    return batch | {"input_features": with_silence(features, frames)}
