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
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from torch.optim import AdamW
from transformers import get_scheduler

from kidspeech.adapters import keep_adapters_only
from kidspeech.augment import Augmentation
from kidspeech.batching import Plan, Step
from kidspeech.checkpoint import TrainState, latest, open_run, rotate, step_folder
from kidspeech.config import Recipe
from kidspeech.dataset import Prepared, load_dataset
from kidspeech.ema import WeightAverage
from kidspeech.errors import StoppedError
from kidspeech.folders import default_cache, locked
from kidspeech.hardware import batch_seconds, between_cpus, compiles, precision
from kidspeech.launcher import WORKER
from kidspeech.loader import Batches, MicroBatches, Side, feed
from kidspeech.meter import Meter
from kidspeech.models import BaseASRModel, Batch, create_model
from kidspeech.noise import read_noise
from kidspeech.progress import Progress, silent
from kidspeech.run_record import RunResult, read_result, result_of, write_result
from kidspeech.stopping import Stop
from kidspeech.validation import Validation, to_device

DEBUG_CLIPS = (100, 20)  # of training and validation, with --debug


def train(
    recipe: Recipe,
    data: Path | str,
    run: Path,
    *,
    debug: bool = False,
    force_restart: bool = False,
    price_per_hour: float | None = None,
    progress: Progress = silent,
) -> RunResult:
    """
    Train what *recipe* says on a prepared dataset, from the newest checkpoint in *run* if there is one.

    Args:
        recipe: all sections but choose are used.
        data: folder or fsspec URL that kidspeech prepare made.
        run: run folder; see kidspeech.checkpoint for what is in it.
        debug: take 100 training and 20 validation clips.
        force_restart: move a run that is there aside and begin anew.
        price_per_hour: of the machine, to show the bill so far.
        progress: told of steps and validations, on the main process.

    Raises:
        DatasetError, CheckpointError, RecipeError: the input can't be used.
        BusyError: another process trains in *run*.
        StorageError: the disk is full; older checkpoints are whole.
        TrainingError: the loss was not finite for train.max_bad_steps steps.
        StoppedError: SIGTERM or SIGINT came; a checkpoint of this moment is there.
    """
    settings = ProjectConfiguration(project_dir=str(run), logging_dir=str(run))
    accelerator = Accelerator(
        cpu=between_cpus(), mixed_precision=precision(recipe.train), log_with="tensorboard", project_config=settings
    )
    main = accelerator.is_main_process
    model = create_model(recipe.model)
    train_side, val_side, prepared = load_dataset(data, model, progress if main else silent)
    with _one_at_a_time(run, main=main):
        with accelerator.main_process_first():
            open_run(run, recipe, _dataset_key(prepared, debug=debug), force_restart=force_restart and main)
        if (finished := read_result(run)) is not None:
            return finished
        most = DEBUG_CLIPS if debug else (None, None)
        sides = [Side(side, model, few) for side, few in zip((train_side, val_side), most, strict=True)]
        tell = progress if main else silent
        children = sorted(set(sides[0].texts("child_id")))
        validation = Validation(accelerator, recipe, run, model, sides[1], prepared.key, children, tell)
        meter = Meter(accelerator, sides[0], price_per_hour)
        return Job(accelerator, recipe, run, model, sides[0], prepared, validation, meter, tell).run_through()


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
    prepared: Prepared
    validation: Validation
    meter: Meter
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
        with Stop(self.accelerator) as self.stop:
            self._fit()
        return self._finish()

    def _build(self) -> None:
        settings = self.recipe.train
        set_seed(settings.seed)
        self.model.load()
        with self.accelerator.main_process_first():  # it makes the features of the noise, the others read them
            self.augment = self._augmentation()
        self.batches = Batches(self.train_side, self.model, self.augment.draws(settings.seed))
        self.plan = Plan(self.train_side.seconds, self.train_side.weights(self.recipe.data.corpora), settings)
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        self.micros = MicroBatches(self.train_side, self.model, self.recipe, self.plan.total, rank, world)
        groups = _parameter_groups(self.model.network, settings.weight_decay)
        self.optimizer = AdamW(groups, lr=settings.learning_rate, fused=True)
        warmup = min(settings.warmup_steps, math.ceil(self.plan.total / 10))
        # not through prepare: accelerate would step it once a process
        self.scheduler = get_scheduler(settings.schedule, self.optimizer, warmup, self.plan.total)
        if compiles(settings, self.plan.total, self.accelerator.device):
            self.model.compile()
        self.model.network, self.stepper = self.accelerator.prepare(self.model.network, self.optimizer)
        self.average = WeightAverage(self.model.network, settings.ema) if settings.ema else None
        self.accelerator.register_for_checkpointing(self.scheduler, *[self.average] * (self.average is not None))
        if self.recipe.model.lora_rank is not None:
            keep_adapters_only(self.accelerator, self.recipe.model)
        self.accelerator.init_trackers("tensorboard")

    def _augmentation(self) -> Augmentation:
        settings = self.recipe.augment
        if settings.noise is None:
            return Augmentation(settings)
        noise = read_noise(Path(settings.noise), self.model.featurizer, default_cache(), self.progress)
        return Augmentation(settings, noise.to(self.accelerator.device))

    def _restore(self) -> None:
        self.micros.limit = batch_seconds(self.recipe, self.accelerator, self._attempt)
        set_seed(self.recipe.train.seed, device_specific=True)
        newest = latest(self.run)
        if newest is not None:
            self.accelerator.load_state(str(newest))
            self.state.load_state_dict(json.loads((newest / "state.json").read_text(encoding="utf-8")))
        then, now = self.state.processes, self.accelerator.num_processes
        if then not in (None, now):
            note = f"begun on {then} processes and now on {now}: the same clips in the same steps, other random numbers"
            self.progress("resuming", self.state.step, self.plan.total, note)
        self.state.processes = now

    def _attempt(self, seconds: float) -> None:
        """
        Take a micro-batch of so many seconds forward and backward, for no step.
        """
        self.model.network.train()
        with self._alone():
            batch = to_device(self.batches[self.micros.largest(seconds)], self.accelerator.device)
            self.accelerator.backward(self.model.loss(batch))
        self.stepper.zero_grad()

    def _fit(self) -> None:
        self.started = time.monotonic() - self.state.seconds
        if self._validates(ends_epoch=self.state.step_in_epoch == 0) and not self._validated():
            self._validate()
        self.model.network.train()  # from_pretrained's evaluates, and a resumed run does not begin with a validation
        self.progress("training", self.state.step, self.plan.total)
        while not self._over():
            self._fit_on()

    def _fit_on(self) -> None:
        """
        Take steps until the run is over, or a micro-batch does not fit.
        """
        on_gpu = self.accelerator.device.type == "cuda"
        workers = self.recipe.train.loader_workers if on_gpu else 0  # on a CPU they would only take its cores
        rest = self.plan.rest(self.state.step, self.state.epoch, self.state.step_in_epoch)
        for step, batches in self.meter.timed(feed(rest, self.micros.share, self.batches, workers=workers, pinned=on_gpu)):
            try:
                self.meter.add(step, self._step(step, batches))
            except torch.OutOfMemoryError as error:
                self._go_smaller(step, error)
                return
            self._advance(step)
            if self._after(ends_epoch=step.ends_epoch):
                return

    def _after(self, *, ends_epoch: bool) -> bool:
        """
        Log, validate and save what is due, and return whether the run is over.
        """
        due, stopped = self._validates(ends_epoch=ends_epoch), self.stop.agreed(self.state.step)
        saves = due or stopped or self.state.step % self.recipe.train.save_every == 0
        if saves or self.state.step % self.recipe.train.log_every == 0:  # nothing is saved that was not looked at
            self._log()
        if due and not stopped:
            self._validate()
        if saves:
            self._save()
            self.meter.pause()
        if stopped:
            raise StoppedError(self.run, self.state.step, self.stop.received)
        return self._over()

    def _step(self, step: Step, batches: list[Batch]) -> torch.Tensor:
        """
        Take one optimizer step and return this device's part of its mean loss per target token.
        """
        targets = int(self.train_side.n_targets[step.clips].sum())
        total = torch.zeros((), device=self.accelerator.device)
        for number, batch in enumerate(batches, start=1):
            with contextlib.nullcontext() if number == len(batches) else self._alone():
                loss = self.model.loss(self.augment(to_device(batch, self.accelerator.device))) / targets
                # gradients are averaged over devices, and the loss is to be summed
                self.accelerator.backward(loss * self.accelerator.num_processes)
            total += loss.detach()
        norm = self.accelerator.clip_grad_norm_(self.model.network.parameters(), self.recipe.train.max_grad_norm)
        if self.accelerator.scaler is None and norm is not None:
            # AdamW's own switch for scalers: a step whose gradient is not finite changes nothing, and nobody waits to see
            self.optimizer.found_inf = (~torch.isfinite(norm)).float()
        self.stepper.step()
        self.learning_rate = self.scheduler.get_last_lr()[0]
        self.scheduler.step()
        self.stepper.zero_grad()
        return total

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        """
        Return a context in which devices do not exchange gradients.
        """
        context: contextlib.AbstractContextManager[None] = self.accelerator.no_sync(self.model.network)
        return context

    def _go_smaller(self, step: Step, error: torch.OutOfMemoryError) -> None:
        self.stepper.zero_grad()
        self.micros.halve(step, error)
        torch.cuda.empty_cache()
        note = f"out of memory: micro-batches of {self.micros.limit:g} seconds from here on, the steps stay the same"
        self.progress("training", self.state.step, self.plan.total, note)

    def _advance(self, step: Step) -> None:
        self.state.step = step.number + 1
        self.state.epoch, self.state.step_in_epoch = (step.epoch + 1, 0) if step.ends_epoch else (step.epoch, step.place + 1)
        if self.average is not None:
            self.average.update(self.state.step)

    def _log(self) -> None:
        figures = self.meter.read(self.learning_rate)
        self.loss = figures["loss"]
        self.accelerator.log({f"train/{name}": value for name, value in figures.items()}, step=self.state.step)
        for note in (self.meter.line(), *self.meter.left_out):
            self.progress("training", self.state.step, self.plan.total, note)
        self.meter.check(self.recipe.train.max_bad_steps, over=self._over())

    def _validates(self, *, ends_epoch: bool) -> bool:
        every = self.recipe.train.eval_every
        return self.state.step == self.plan.total or (ends_epoch if every is None else self.state.step % every == 0)

    def _validated(self) -> bool:
        return any(entry["step"] == self.state.step for entry in self.state.history)

    def _over(self) -> bool:
        patience = self.recipe.train.patience
        return self.state.step >= self.plan.total or (patience is not None and self.state.stale >= patience)

    def _validate(self) -> None:
        with self.average.in_place() if self.average else contextlib.nullcontext():
            self.validation.measure(self.state, self.loss)

    def _save(self) -> None:
        if self.meter.bad:  # weights that give no finite loss replace no checkpoint that did
            return
        main = self.accelerator.is_main_process
        self.state.seconds = time.monotonic() - self.started
        with step_folder(self.run, self.state, main=main, meet=self.accelerator.wait_for_everyone) as folder:
            self.accelerator.save_state(str(folder))
        if main:
            rotate(self.run, self.recipe.train.save_total_limit)
        self.accelerator.wait_for_everyone()

    def _finish(self) -> RunResult:
        self.accelerator.end_training()
        result = result_of(self.state, self.recipe, self.prepared.key, self.accelerator, self.meter.medians())
        if self.accelerator.is_main_process:
            write_result(self.run, result)
        return result


@contextlib.contextmanager
def _one_at_a_time(run: Path, *, main: bool) -> Iterator[None]:
    with locked(run.parent / f".{run.name}.lock", f"the run {run}") if main else contextlib.nullcontext():
        yield


def _dataset_key(prepared: Prepared, *, debug: bool) -> str:
    return f"{prepared.key}-debug" if debug else prepared.key


def _parameter_groups(network: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trained if parameter.ndim >= 2]
    rest = [parameter for parameter in trained if parameter.ndim < 2]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


if __name__ == "__main__":
    # the command line of `kidspeech train`, in a process that a launcher has started: the one import that points upwards
    from kidspeech.cli.main import main

    main(["train", WORKER, *__import__("sys").argv[1:]])
