"""
Training: one accelerate loop, top to bottom.

Started by `kidspeech train`, or by any launcher of accelerate's::

    accelerate launch --num_processes 4 -m kidspeech.train RECIPE --data DATA --out RUN [section.key=value ...]

Two things differ from the usual recipe. The context is the batch's longest clip instead of 30 s (model.context). And the
loss is a sum over target tokens divided by the targets of the whole optimizer step, so that neither micro-batches,
length-sorted batches nor several devices change what a step computes; transformers' Whisper takes a plain mean per batch.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, gather_object, set_seed
from torch.optim import AdamW
from torch.utils.data import DataLoader
from transformers import get_scheduler

from kidspeech.batching import Clips, MicroBatch, pack, plan_epoch, share
from kidspeech.cache import locked
from kidspeech.checkpoint import BestInfo, TrainState, best_folder, latest, open_run, rotate, step_folder
from kidspeech.config import Recipe, Train, as_dict
from kidspeech.dataset import Prepared, load_dataset
from kidspeech.errors import TrainingError
from kidspeech.loader import Batches, Side
from kidspeech.metrics import ChildWER
from kidspeech.models import BaseASRModel, Batch, create_model
from kidspeech.progress import Progress, silent
from kidspeech.run_record import RunResult, Window, read_result, result_of, write_result

DEBUG_CLIPS = (100, 20)  # of training and validation, with --debug


def train(
    recipe: Recipe,
    data: Path,
    run: Path,
    *,
    debug: bool = False,
    force_restart: bool = False,
    progress: Progress = silent,
) -> RunResult:
    """
    Train what *recipe* says on a prepared dataset, from the newest checkpoint in *run* if there is one.

    Args:
        recipe: sections model, train and decode are used.
        data: folder that kidspeech prepare made.
        run: run folder; see kidspeech.checkpoint for what is in it.
        debug: take 100 training and 20 validation clips.
        force_restart: move a run that is there aside and begin anew.
        progress: told of steps and validations, on the main process.

    Raises:
        DatasetError, CheckpointError, RecipeError: the input can't be used.
        BusyError: another process trains in *run*.
        StorageError: the disk is full; older checkpoints are whole.
        TrainingError: the loss is not finite.
    """
    settings = ProjectConfiguration(project_dir=str(run), logging_dir=str(run))
    precision = _precision(recipe.train)
    accelerator = Accelerator(cpu=_gloo(), mixed_precision=precision, log_with="tensorboard", project_config=settings)
    main = accelerator.is_main_process
    model = create_model(recipe.model)
    train_side, val_side, prepared = load_dataset(data, model)
    with _one_at_a_time(run, main=main):
        with accelerator.main_process_first():
            open_run(run, recipe, _dataset_key(prepared, debug=debug), force_restart=force_restart and main)
        if (finished := read_result(run)) is not None:
            return finished
        sides = [Side(side, model, most) for side, most in zip((train_side, val_side), _most(debug=debug), strict=True)]
        job = Job(accelerator, recipe, run, model, sides[0], sides[1], prepared, progress if main else silent)
        return job.run_through()


@dataclass
class Job:
    """
    One training run in one process: what the steps below share.
    """

    accelerator: Accelerator
    recipe: Recipe
    run: Path
    model: BaseASRModel
    train_side: Side
    val_side: Side
    prepared: Prepared
    progress: Progress
    state: TrainState = field(default_factory=TrainState)
    loss: float | None = None
    """As in the log's last line."""

    def run_through(self) -> RunResult:
        """
        Build, restore, fit, and write run.json.
        """
        self._build()
        self._restore()
        self._fit()
        return self._finish()

    def _build(self) -> None:
        set_seed(self.recipe.train.seed)
        self.model.load()
        settings = self.recipe.train
        optimizer = AdamW(_parameter_groups(self.model.network, settings.weight_decay), lr=settings.learning_rate, fused=True)
        self.total = self._total_steps()
        warmup = min(settings.warmup_steps, math.ceil(self.total / 10))
        # not through prepare: accelerate would step it once a process
        self.scheduler = get_scheduler(settings.schedule, optimizer, num_warmup_steps=warmup, num_training_steps=self.total)
        self.model.network, self.optimizer = self.accelerator.prepare(self.model.network, optimizer)
        self.accelerator.register_for_checkpointing(self.scheduler)
        self.accelerator.init_trackers("tensorboard")
        set_seed(settings.seed, device_specific=True)

    def _restore(self) -> None:
        newest = latest(self.run)
        if newest is not None:
            self.accelerator.load_state(str(newest))
            self.state.load_state_dict(json.loads((newest / "state.json").read_text(encoding="utf-8")))

    def _fit(self) -> None:
        self.started = time.monotonic() - self.state.seconds
        if not self.state.history:
            self._validate()
        self.progress("training", self.state.step, self.total)
        window = Window()
        while not self._over():
            for step, batches in self._epoch():
                window.add(self._step(step, batches), self.train_side, step)
                self.state.step += 1
                self.state.step_in_epoch += 1
                self._log(window)
                if self._validates():
                    self._validate()
                if self._saves():
                    self._save()
                if self._over():
                    break
            else:
                self.state.epoch, self.state.step_in_epoch = self.state.epoch + 1, 0

    def _epoch(self) -> Iterator[tuple[Clips, list[Batch]]]:
        """
        Yield what is left of this epoch: each step's clips, and this device's micro-batches of it.
        """
        whole = self._plan(self.state.epoch)
        self.epoch_steps = len(whole)
        plan = whole[self.state.step_in_epoch :]
        shares = [self._share(step, self.state.step + ahead) for ahead, step in enumerate(plan)]
        loader = DataLoader(
            Batches(self.train_side, self.model),
            batch_size=None,
            sampler=[micro for micros in shares for micro in micros],
            num_workers=0 if self.accelerator.device.type == "cpu" else self.recipe.train.loader_workers,
            pin_memory=self.accelerator.device.type == "cuda",
            generator=torch.Generator(),  # its own: a loader draws a seed, and a resumed epoch would draw another
        )
        batches = iter(loader)
        for step, micros in zip(plan, shares, strict=True):
            yield step, [next(batches) for _ in micros]

    def _step(self, step: Clips, batches: list[Batch]) -> torch.Tensor:
        """
        Take one optimizer step and return this device's part of its mean loss per target token.
        """
        targets = int(self.train_side.n_targets[step].sum())
        total = torch.zeros((), device=self.accelerator.device)
        for number, batch in enumerate(batches, start=1):
            exchange = contextlib.nullcontext() if number == len(batches) else self.accelerator.no_sync(self.model.network)
            with exchange:
                loss = self.model.loss(_to(batch, self.accelerator.device)) / targets
                # gradients are averaged over devices, and the loss is to be summed
                self.accelerator.backward(loss * self.accelerator.num_processes)
            total += loss.detach()
        self.accelerator.clip_grad_norm_(self.model.network.parameters(), self.recipe.train.max_grad_norm)
        self.optimizer.step()
        self.learning_rate = self.scheduler.get_last_lr()[0]
        self.scheduler.step()
        self.optimizer.zero_grad()
        return total

    def _log(self, window: Window) -> None:
        if self.state.step % self.recipe.train.log_every and not self._saves():  # nothing is saved that was not looked at
            return
        figures = window.figures(self.accelerator) | {"learning_rate": self.learning_rate}
        if not math.isfinite(figures["loss"]):
            msg = (
                f"the loss is {figures['loss']} after step {self.state.step}; the newest checkpoint is from before: "
                "lower train.learning_rate, or look at the clips with kidspeech inspect"
            )
            raise TrainingError(msg)
        self.accelerator.log({f"train/{name}": value for name, value in figures.items()}, step=self.state.step)
        note = f"loss {figures['loss']:.3f}, lr {figures['learning_rate']:.1e}, {figures['clips_per_second']:.1f} clips/s"
        self.progress("training", self.state.step, self.total, note)
        self.loss = figures["loss"]

    def _validates(self) -> bool:
        every = self.recipe.train.eval_every
        due = self.state.step_in_epoch == self.epoch_steps if every is None else self.state.step % every == 0
        return due or self.state.step == self.total

    def _saves(self) -> bool:
        return self._validates() or self.state.step % self.recipe.train.save_every == 0

    def _over(self) -> bool:
        patience = self.recipe.train.patience
        return self.state.step >= self.total or (patience is not None and self.state.stale >= patience)

    def _validate(self) -> None:
        """
        Measure WER on the validation children by real generation, and keep the weights if it is the lowest so far.
        """
        texts = self._transcribe()
        side = self.val_side
        result = ChildWER().compute(
            predictions=texts, references=side.texts("orthographic_text"), groups=side.texts("age_bucket")
        )
        groups = {name: figures["wer"] for name, figures in sorted(result["groups"].items())}
        self.state.history.append({"step": self.state.step, "wer": result["wer"], "groups": groups, "loss": self.loss})
        curves = {"validation/wer": result["wer"]} | {f"validation/wer_{name}": wer for name, wer in groups.items()}
        self.accelerator.log(curves, step=self.state.step)
        if self.state.best_wer is None or result["wer"] < self.state.best_wer:
            self.state.best_wer, self.state.best_step, self.state.stale = result["wer"], self.state.step, 0
            self._save_best(result["wer"], groups)
        else:
            self.state.stale += 1

    def _transcribe(self) -> list[str]:
        side, settings, padded = self.val_side, self.recipe.decode, self._context() == "padded"
        order = np.argsort(-side.seconds, kind="stable")[self.accelerator.process_index :: self.accelerator.num_processes]
        limit = settings.seconds_at_once()
        batches = pack(order, lambda clips: side.padded_seconds(clips, self.model, padded=padded), limit)
        made: list[tuple[int, str]] = []
        self.model.network.eval()
        for clips in batches:
            batch = _to(Batches(side, self.model)[MicroBatch(clips, padded)], self.accelerator.device)
            with self.accelerator.autocast():
                made += zip(clips.tolist(), self.model.generate(batch, settings), strict=True)
            self.progress(f"validation at step {self.state.step}", len(made), len(order))
        self.model.network.train()
        return [text for _, text in sorted(gather_object(made))]

    def _context(self) -> str:
        """
        Return the context that the weights of this step are to be decoded in: before training, the one they came with.
        """
        fresh = self.state.step == 0 and self.recipe.model.pretrained is not None
        return "padded" if fresh else self.recipe.model.context

    def _save_best(self, wer: float, groups: dict[str, float]) -> None:
        if self.accelerator.is_main_process:
            recipe = as_dict(self.recipe)
            recipe["model"]["context"] = self._context()
            children = sorted(set(self.train_side.texts("child_id")))
            info = BestInfo(recipe, self.state.step, wer, groups, self.prepared.key, children)
            with best_folder(self.run, info) as folder:
                self.model.save(folder)
        self.accelerator.wait_for_everyone()

    def _save(self) -> None:
        main = self.accelerator.is_main_process
        self.state.seconds = time.monotonic() - self.started
        with step_folder(self.run, self.state, main=main, meet=self.accelerator.wait_for_everyone) as folder:
            self.accelerator.save_state(str(folder))
        if main:
            rotate(self.run, self.recipe.train.save_total_limit)
        self.accelerator.wait_for_everyone()

    def _finish(self) -> RunResult:
        self.accelerator.end_training()
        result = result_of(self.state, self.recipe, self.prepared.key, self.accelerator)
        if self.accelerator.is_main_process:
            write_result(self.run, result)
        return result

    def _plan(self, epoch: int) -> list[Clips]:
        settings = self.recipe.train
        return plan_epoch(self.train_side.seconds, settings.effective_batch, seed=settings.seed, epoch=epoch)

    def _total_steps(self) -> int:
        settings = self.recipe.train
        whole, part = int(settings.epochs), settings.epochs % 1
        steps = sum(len(self._plan(epoch)) for epoch in range(whole)) + math.ceil(part * len(self._plan(whole)))
        return settings.max_steps or max(steps, 1)

    def _share(self, step: Clips, number: int) -> list[MicroBatch]:
        finish = self.total * (1 - self.recipe.train.padded_finish)
        padded = self.recipe.model.context == "padded" or number >= finish
        return share(
            step,
            lambda clips: self.train_side.padded_seconds(clips, self.model, padded=padded),
            limit=self.recipe.train.batch_seconds,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            padded=padded,
        )


@contextlib.contextmanager
def _one_at_a_time(run: Path, *, main: bool) -> Iterator[None]:
    with locked(run.parent / f".{run.name}.lock", f"the run {run}") if main else contextlib.nullcontext():
        yield


def _dataset_key(prepared: Prepared, *, debug: bool) -> str:
    return f"{prepared.key}-debug" if debug else prepared.key


def _most(*, debug: bool) -> tuple[int | None, int | None]:
    return DEBUG_CLIPS if debug else (None, None)


def _precision(settings: Train) -> str:
    wanted = settings.precision
    if wanted == "auto" and torch.cuda.is_available():
        wanted = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return wanted if wanted in ("bf16", "fp16") else "no"


def _gloo() -> bool:
    """
    Return whether several processes share CPUs: accelerate takes them for strangers otherwise.
    """
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.cuda.is_available()


def _parameter_groups(network: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trained if parameter.ndim >= 2]
    rest = [parameter for parameter in trained if parameter.ndim < 2]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def _to(batch: Batch, device: torch.device) -> Batch:
    return {name: value.to(device, non_blocking=True) if torch.is_tensor(value) else value for name, value in batch.items()}


if __name__ == "__main__":
    # the command line of `kidspeech train`, in a process that a launcher has started: the one import that points upwards
    from kidspeech.cli.main import main

    main(["train-worker", *__import__("sys").argv[1:]])
