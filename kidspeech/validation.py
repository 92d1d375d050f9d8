"""
Validation by real generation: what the network says to the clips of children it never heard, and the best weights kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from kidspeech.batching import MicroBatch, pack
from kidspeech.checkpoint import BestInfo, TrainState, best_folder
from kidspeech.config import Recipe, as_dict
from kidspeech.loader import Batches, Side
from kidspeech.metrics import ChildWER
from kidspeech.models import BaseASRModel, Batch
from kidspeech.progress import Progress
from kidspeech.sharded import gathered

SHOWN = 8  # transcripts in TensorBoard, always of the same clips


@dataclass
class Validation:
    """
    What it takes to measure a run's weights.

    Attributes:
        accelerator: whose devices take part.
        recipe: sections model and decode are used.
        run: the run folder, for best/.
        model: with its network.
        side: the validation clips.
        dataset: key of the prepared dataset.
        train_children: ids of those the run hears.
        progress: told of the clips done.
    """

    accelerator: Accelerator
    recipe: Recipe
    run: Path
    model: BaseASRModel
    side: Side
    dataset: str
    train_children: list[str]
    progress: Progress

    def measure(self, state: TrainState, loss: float | None) -> None:
        """
        Add the weights' WER to the history in *state*, and keep them in best/ if it is the lowest so far.

        Raises:
            StorageError: the disk is full; what was in best/ is whole.
        """
        context = self._context(state.step)
        texts = self._transcribe(f"validation at step {state.step}", padded=context == "padded")
        references, ages = self.side.texts("orthographic_text"), self.side.texts("age_bucket")
        result = ChildWER().compute(predictions=texts, references=references, groups=ages)
        groups = {name: figures["wer"] for name, figures in sorted(result["groups"].items())}
        state.history.append({"step": state.step, "wer": result["wer"], "groups": groups, "loss": loss})
        self._show(state.step, texts, result["wer"], groups)
        if state.best_wer is None or result["wer"] < state.best_wer:
            state.best_wer, state.best_step, state.stale = result["wer"], state.step, 0
            self._keep(BestInfo(self._recipe(context), state.step, result["wer"], groups, self.dataset, self.train_children))
        else:
            state.stale += 1

    def _context(self, step: int) -> str:
        """
        Return the context that the weights of this step are to be decoded in: before training, the one they came with.
        """
        fresh = step == 0 and self.recipe.model.pretrained is not None
        return "padded" if fresh else self.recipe.model.context

    def _transcribe(self, stage: str, *, padded: bool) -> list[str]:
        """
        Return the text of each clip, each device taking its part.
        """
        side, model, settings = self.side, self.model, self.recipe.decode
        order = np.argsort(-side.seconds, kind="stable")[self.accelerator.process_index :: self.accelerator.num_processes]
        limit = settings.seconds_at_once()
        batches = pack(order, lambda clips: side.padded_seconds(clips, model, padded=padded), limit)
        made: list[tuple[int, str]] = []
        model.network.eval()
        with gathered(model.network), self.accelerator.autocast():
            for clips in batches:
                batch = to_device(Batches(side, model)[MicroBatch(clips, padded)], self.accelerator.device)
                made += zip(clips.tolist(), model.generate(batch, settings), strict=True)
                self.progress(stage, len(made), len(order))
        model.network.train()
        return [text for _, text in sorted(gather_object(made))]

    def _show(self, step: int, texts: list[str], wer: float, groups: dict[str, float]) -> None:
        curves = {"validation/wer": wer} | {f"validation/wer_{name}": value for name, value in groups.items()}
        self.accelerator.log(curves, step=step)
        if self.accelerator.is_main_process:
            writer = self.accelerator.get_tracker("tensorboard", unwrap=True)
            writer.add_text("validation/transcripts", self._transcripts(texts), step)

    def _transcripts(self, texts: list[str]) -> str:
        """
        Return a few transcripts beside their references, as a table in Markdown.
        """
        places = np.linspace(0, len(texts) - 1, min(SHOWN, len(texts))).round().astype(int)
        ids, references = self.side.texts("utterance_id"), self.side.texts("orthographic_text")
        rows = [f"| {ids[place]} | {references[place]} | {texts[place]} |" for place in places]
        return "\n".join(["| utterance | reference | heard |", "| --- | --- | --- |", *rows])

    def _recipe(self, context: str) -> dict[str, object]:
        recipe = as_dict(self.recipe)
        recipe["model"]["context"] = context
        return dict(recipe)

    def _keep(self, info: BestInfo) -> None:
        weights = self.accelerator.get_state_dict(self.model.network)  # in every process: FSDP gathers it
        if self.accelerator.is_main_process:
            with best_folder(self.run, info) as folder:
                self.model.save(folder, weights)
        self.accelerator.wait_for_everyone()


def to_device(batch: Batch, device: torch.device) -> Batch:
    """
    Return *batch* with its tensors on *device*.
    """
    return {name: value.to(device, non_blocking=True) if torch.is_tensor(value) else value for name, value in batch.items()}
