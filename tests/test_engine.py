"""
The training loop under stress: stopped, out of memory, fed a loss that is no number, compiled; and the average it keeps.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from kidspeech.batching import Plan
from kidspeech.checkpoint import latest
from kidspeech.config import Batch, Train, load_recipe
from kidspeech.dataset import build_dataset
from kidspeech.ema import WeightAverage
from kidspeech.errors import StoppedError
from kidspeech.manifest import read_manifest
from kidspeech.models import BaseASRModel
from kidspeech.models.whisper import WhisperModel
from kidspeech.stopping import Stop
from kidspeech.train import train

from corpora import Corpus

LAST = "step-000006/model.safetensors"
PATIENCE = 300  # seconds: what takes longer hangs


@pytest.fixture(name="data")
def _data(recipe_file: Path, corpus: Corpus, tmp_path: Path) -> Path:
    build_dataset(load_recipe(recipe_file), [corpus.manifest], corpus.audio_dirs, tmp_path / "DATA")
    return tmp_path / "DATA"


class Notes(list[str]):
    """
    A Progress that keeps what it is told beside the figures.
    """

    def __call__(self, stage: str, done: float, total: float, note: str = "") -> None:
        self.append(f"{stage}: {note}")


def same(one: Path, two: Path) -> bool:
    """
    Return whether two files hold the same tensors, to the bit.
    """
    first, second = load_file(one), load_file(two)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.integration
def test_asked_to_stop_it_saves_and_goes_on_to_the_same_bits(
    recipe_file: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Stopped after step 3, where a validation was due: the rest of the run, its average and its best are as if nothing had been.
    """
    recipe = load_recipe(recipe_file, ["train.ema=0.9", "model.dropout=0.1"])
    whole = train(recipe, data, tmp_path / "WHOLE")
    with monkeypatch.context() as patch:
        patch.setattr(Stop, "agreed", lambda _, step: step == 3)
        with pytest.raises(StoppedError, match=r"at step 3, saved in .*RUN; the same command goes on"):
            train(recipe, data, tmp_path / "RUN")
    resumed = train(recipe, data, tmp_path / "RUN")

    assert [(entry["step"], entry["wer"]) for entry in resumed.history] == [
        (entry["step"], entry["wer"]) for entry in whole.history
    ]
    assert same(tmp_path / "WHOLE" / LAST, tmp_path / "RUN" / LAST)
    assert same(tmp_path / "WHOLE" / "best" / "model.safetensors", tmp_path / "RUN" / "best" / "model.safetensors")


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_sigterm_to_the_command_reaches_the_training(recipe_file: Path, data: Path, tmp_path: Path) -> None:
    """
    A scheduler ends the process it knows, the launcher: the training below it saves, says so, and both are gone.
    """
    arguments = [
        str(recipe_file),
        "--data",
        str(data),
        "--out",
        str(tmp_path / "RUN"),
        "train.epochs=10000",
        "train.patience=9999",
    ]
    command = [Path(sys.executable).with_name("kidspeech"), "train", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + PATIENCE
    while latest(tmp_path / "RUN") is None:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=PATIENCE)

    newest = latest(tmp_path / "RUN")
    assert process.returncode
    assert newest is not None
    assert f"stopped by SIGTERM at step {int(newest.name.removeprefix('step-'))}, saved in" in said


@pytest.mark.integration
def test_out_of_memory_halves_the_micro_batch_and_changes_nothing_else(
    recipe_file: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A device that holds three seconds: the run says so, and ends with the weights of one that was told to take three.
    """
    loss, notes = WhisperModel.loss, Notes()

    def small(model: WhisperModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        clips, _, frames = batch["input_features"].shape
        if clips > 1 and clips * frames > 300:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss(model, batch)

    settings = ["train.padded_finish=0", "train.max_steps=4"]
    train(load_recipe(recipe_file, [*settings, "train.batch_seconds=3"]), data, tmp_path / "THREE")
    monkeypatch.setattr(WhisperModel, "loss", small)
    train(load_recipe(recipe_file, [*settings, "train.batch_seconds=24"]), data, tmp_path / "RUN", progress=notes)

    assert [note for note in notes if "out of memory" in note][-1].endswith(
        "out of memory: micro-batches of 3 seconds from here on, the steps stay the same"
    )
    assert same(tmp_path / "THREE" / "step-000004/model.safetensors", tmp_path / "RUN" / "step-000004/model.safetensors")


@pytest.mark.integration
def test_a_step_without_a_finite_loss_is_left_out_by_name(
    recipe_file: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    One step's loss is no number: its clips are named, its gradient changes nothing, and the run goes on to finite weights.
    """
    loss, notes, calls = WhisperModel.loss, Notes(), []

    def once_bad(model: WhisperModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        calls.append(0)
        return loss(model, batch) * (float("nan") if len(calls) == 2 else 1.0)

    monkeypatch.setattr(WhisperModel, "loss", once_bad)
    result = train(load_recipe(recipe_file, ["train.padded_finish=0"]), data, tmp_path / "RUN", progress=notes)

    bad = [note for note in notes if "the loss is nan" in note]
    assert len(bad) == 1
    assert "at step 2 (" in bad[0]
    assert any(utterance.utterance_id in bad[0] for utterance in read_manifest(data / "train.jsonl"))
    assert result.steps == 6
    assert all(bool(tensor.isfinite().all()) for tensor in load_file(tmp_path / "RUN" / LAST).values())


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for CPUs with g++, which is not installed")
def test_compiled_layers_take_the_same_steps(recipe_file: Path, data: Path, tmp_path: Path) -> None:
    """
    Compiled, three steps end with the weights of three plain ones, to float32's accuracy.
    """
    for name, compiled in (("PLAIN", "false"), ("COMPILED", "true")):
        settings = [f"train.compile={compiled}", "train.max_steps=3", "train.padded_finish=0"]
        train(load_recipe(recipe_file, settings), data, tmp_path / name)
    plain, compiled_weights = (
        load_file(tmp_path / name / "step-000003" / "model.safetensors") for name in ("PLAIN", "COMPILED")
    )

    assert plain.keys() == compiled_weights.keys()
    for name, value in plain.items():
        torch.testing.assert_close(value, compiled_weights[name], rtol=1e-3, atol=1e-4)


@pytest.mark.integration
def test_the_bill_is_in_the_live_line(recipe_file: Path, data: Path, tmp_path: Path) -> None:
    """
    With a price it shows what the run has cost; without one it shows no dollars. run.json keeps the medians.
    """
    with_price, without = Notes(), Notes()
    settings = ["train.max_steps=2"]
    result = train(load_recipe(recipe_file, settings), data, tmp_path / "A", price_per_hour=3600.0, progress=with_price)
    train(load_recipe(recipe_file, settings), data, tmp_path / "B", progress=without)

    assert any("$" in note for note in with_price)
    assert not any("$" in note for note in without)
    assert result.speed["clips_per_second"] > 0
    assert 0 <= result.speed["waiting_for_data"] <= 1


@pytest.mark.unit
@given(
    lengths=st.lists(st.floats(0.1, 30), min_size=1, max_size=60),
    batch=st.integers(1, 9),
    epochs=st.floats(0.2, 3),
    cut=st.integers(0, 10_000),
)
def test_the_plan_goes_on_from_any_step(lengths: list[float], batch: int, epochs: float, cut: int) -> None:
    """
    What is left from a step on is the tail of the whole plan, which has as many steps as it says.
    """
    settings = Train(epochs=epochs, effective_batch=Batch(amount=float(batch), unit="clips"))
    plan = Plan(np.array(lengths), None, settings)
    whole = list(plan.rest(0, 0, 0))
    first = whole[cut % len(whole)]
    rest = list(plan.rest(first.number, first.epoch, first.place))

    assert len(whole) == plan.total
    assert [step.number for step in whole] == list(range(plan.total))
    assert [step.clips.tolist() for step in rest] == [step.clips.tolist() for step in whole[first.number :]]


@pytest.mark.unit
def test_the_average_follows_its_formula_and_gives_the_weights_back() -> None:
    """
    Three updates against numbers worked out by hand: decays of 2/11, 3/12 and 4/13, all below the 0.9 asked for.
    """
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(network.weight, 1.0)
    average = WeightAverage(network, 0.9)
    expected = 1.0
    for step, value in enumerate((2.0, 4.0, 8.0), start=1):
        torch.nn.init.constant_(network.weight, value)
        average.update(step)
        decay = (1 + step) / (10 + step)
        expected = decay * expected + (1 - decay) * value
    with average.in_place():
        assert network.weight.item() == pytest.approx(expected)

    assert network.weight.item() == 8.0
    assert average.average[0].item() == pytest.approx(expected)


def test_a_family_says_how_it_compiles() -> None:
    """
    The loop asks every family to; none may leave it out.
    """
    assert "compile" in BaseASRModel.__abstractmethods__
