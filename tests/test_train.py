"""
Training: resumes as if nothing had happened, keeps the best, and never mistakes one run for another.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from kidspeech.checkpoint import latest, open_run, read_best, recipe_of
from kidspeech.config import load_recipe
from kidspeech.dataset import build_dataset
from kidspeech.errors import BusyError, CheckpointError, DatasetError, StorageError, TrainingError
from kidspeech.metrics import ChildWER
from kidspeech.run_record import RunResult
from kidspeech.train import train

from corpora import NO_TIMESTAMPS, START, Corpus

pytestmark = pytest.mark.integration


@pytest.fixture(name="data")
def _data(recipe_file: Path, corpus: Corpus, tmp_path: Path) -> Path:
    build_dataset(load_recipe(recipe_file), [corpus.manifest], corpus.audio_dirs, tmp_path / "DATA")
    return tmp_path / "DATA"


def run(recipe_file: Path, data: Path, out: Path, *overrides: str, **options: bool) -> RunResult:
    return train(load_recipe(recipe_file, overrides), data, out, **options)


def test_a_run_leaves_what_its_readme_says(recipe_file: Path, data: Path, tmp_path: Path) -> None:
    """
    Two epochs of three steps: checkpoints, best/, run.json, curves; WER before, after each epoch, by age group.
    """
    result = run(recipe_file, data, tmp_path / "RUN")
    names = {path.name for path in (tmp_path / "RUN").iterdir()}

    assert names == {"recipe.yaml", "dataset.json", "best", "run.json", "tensorboard", "step-000004", "step-000006"}
    assert [entry["step"] for entry in result.history] == [0, 3, 6]
    assert set(result.history[0]["groups"]) == {"3-4", "5-7", "8-11"}
    assert result.best_wer == min(entry["wer"] for entry in result.history)
    assert json.loads((tmp_path / "RUN" / "run.json").read_text(encoding="utf-8"))["steps"] == 6
    assert list((tmp_path / "RUN" / "tensorboard").glob("events*"))


def test_best_loads_in_plain_transformers_with_the_measured_wer(
    recipe_file: Path, data: Path, corpus: Corpus, tmp_path: Path
) -> None:
    """
    from_pretrained takes best/; its kidspeech.json holds the WER, the recipe, and the children it heard.
    """
    result = run(recipe_file, data, tmp_path / "RUN")
    best = tmp_path / "RUN" / "best"
    info = read_best(best)
    network = transformers.WhisperForConditionalGeneration.from_pretrained(best)
    processor = transformers.WhisperProcessor.from_pretrained(best)
    heard = {json.loads(line)["child_id"] for line in (data / "train.jsonl").read_text(encoding="utf-8").splitlines()}

    assert info is not None
    assert (info.wer, info.step) == (result.best_wer, result.best_step)
    assert set(info.train_children) == heard
    assert recipe_of(str(best))[0].model.context == "trimmed"
    assert network.config.d_model == 16
    assert processor.tokenizer.prefix_tokens == [START, NO_TIMESTAMPS]


def start(recipe_file: Path, data: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    chance = ["model.dropout=0.1", "augment.time_masks=2", "augment.gain_db=6"]
    arguments = [str(recipe_file), "--data", str(data), "--out", str(out), "train.epochs=4", *chance, *more]
    return subprocess.Popen(
        [sys.executable, "-m", "kidspeech.train", *arguments], stderr=subprocess.PIPE, start_new_session=True
    )


@pytest.mark.slow
def test_killed_at_any_time_and_started_again_it_ends_with_the_same_bits(
    recipe_file: Path, data: Path, tmp_path: Path
) -> None:
    """
    kill -9 in the middle, the same command again: final and best weights equal those of a run that was never killed.

    With dropout and augmentation, so that the random numbers have to go on where they were.
    """
    assert start(recipe_file, data, tmp_path / "WHOLE").wait(120) == 0
    process = start(recipe_file, data, tmp_path / "KILLED")
    deadline = time.monotonic() + 120
    while latest(tmp_path / "KILLED") is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)
    killed_at = latest(tmp_path / "KILLED")
    assert not (tmp_path / "KILLED" / "run.json").exists()
    assert killed_at is not None
    assert start(recipe_file, data, tmp_path / "KILLED").wait(120) == 0

    for name in ("step-000012/model.safetensors", "best/model.safetensors"):
        whole, killed = load_file(tmp_path / "WHOLE" / name), load_file(tmp_path / "KILLED" / name)
        assert whole.keys() == killed.keys()
        assert all(torch.equal(whole[key], killed[key]) for key in whole)


def test_a_resumed_run_from_pretrained_weights_has_its_dropout(recipe_file: Path, data: Path, tmp_path: Path) -> None:
    """
    from_pretrained returns a network without dropout, and a resumed run ends with the same bits all the same.
    """
    run(recipe_file, data, tmp_path / "BASE", "train.max_steps=1")
    source = [f"model.pretrained={tmp_path / 'BASE' / 'best'}", "model.random=null", "model.dropout=0.3", "train.max_steps=4"]
    run(recipe_file, data, tmp_path / "RUN", *source)
    whole = load_file(tmp_path / "RUN" / "step-000004" / "model.safetensors")
    (tmp_path / "RUN" / "run.json").unlink()
    shutil.rmtree(tmp_path / "RUN" / "step-000004")
    run(recipe_file, data, tmp_path / "RUN", *source)
    resumed = load_file(tmp_path / "RUN" / "step-000004" / "model.safetensors")

    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_a_half_written_checkpoint_is_never_picked_up(recipe_file: Path, data: Path, tmp_path: Path) -> None:
    """
    Folders without state.json, and those still beside, are passed over for the newest whole one.
    """
    run(recipe_file, data, tmp_path / "RUN")
    (tmp_path / "RUN" / "step-000006" / "state.json").unlink()
    (tmp_path / "RUN" / "step-000009.tmp").mkdir()

    assert latest(tmp_path / "RUN") == tmp_path / "RUN" / "step-000004"


def test_best_survives_a_kill_between_its_two_renames(recipe_file: Path, data: Path, tmp_path: Path) -> None:
    """
    best.old without best is put back by the next start.
    """
    run(recipe_file, data, tmp_path / "RUN")
    (tmp_path / "RUN" / "best").rename(tmp_path / "RUN" / "best.old")
    run(recipe_file, data, tmp_path / "RUN")

    assert (tmp_path / "RUN" / "best" / "kidspeech.json").is_file()


def test_a_finished_run_is_not_trained_again(recipe_file: Path, data: Path, tmp_path: Path) -> None:
    """
    The same command a third time answers from run.json.
    """
    first = run(recipe_file, data, tmp_path / "RUN")

    assert run(recipe_file, data, tmp_path / "RUN") == first


def test_other_settings_do_not_continue_a_run(recipe_file: Path, data: Path, tmp_path: Path) -> None:
    """
    A run with another learning rate is refused with what changed; settings that change nothing are not.
    """
    run(recipe_file, data, tmp_path / "RUN", "train.max_steps=2")

    with pytest.raises(CheckpointError, match=r"train\.learning_rate was 0\.001, is 0\.5.*--force-restart"):
        run(recipe_file, data, tmp_path / "RUN", "train.max_steps=2", "train.learning_rate=0.5")
    assert (
        run(recipe_file, data, tmp_path / "RUN", "train.max_steps=2", "train.batch_seconds=9", "train.log_every=2").steps == 2
    )


def test_force_restart_moves_the_old_run_aside(recipe_file: Path, data: Path, tmp_path: Path) -> None:
    """
    Nothing is deleted: the old run is RUN.1, the one before stays RUN.1 and the next is RUN.2.
    """
    for _ in range(3):
        run(recipe_file, data, tmp_path / "RUN", "train.max_steps=1", force_restart=True)

    assert {path.name for path in tmp_path.glob("RUN*")} == {"RUN", "RUN.1", "RUN.2"}
    assert all((tmp_path / name / "best").is_dir() for name in ("RUN", "RUN.1", "RUN.2"))


def test_weights_that_training_did_not_better_stay_decoded_padded(recipe_file: Path, data: Path, tmp_path: Path) -> None:
    """
    best/ may hold the weights the run started from, which never saw a short context; it says so, and prediction follows.
    """
    run(recipe_file, data, tmp_path / "RUN", "train.max_steps=1")
    source = [f"model.pretrained={tmp_path / 'RUN' / 'best'}", "model.random=null"]
    result = run(recipe_file, data, tmp_path / "ON", *source, "train.learning_rate=1e-12", "train.max_steps=1")

    assert result.best_step == 0
    assert recipe_of(str(tmp_path / "ON" / "best"))[0].model.context == "padded"


def test_debug_takes_few_clips_and_is_no_real_run(recipe_file: Path, data: Path, tmp_path: Path) -> None:
    """
    A run with --debug can't be continued without it.
    """
    run(recipe_file, data, tmp_path / "RUN", "train.max_steps=1", debug=True)

    with pytest.raises(CheckpointError, match="the dataset"):
        run(recipe_file, data, tmp_path / "RUN", "train.max_steps=1")


def test_patience_ends_a_run_that_does_not_get_better(recipe_file: Path, data: Path, tmp_path: Path) -> None:
    """
    With a learning rate of nothing no validation is better than the first, and two are enough.
    """
    result = run(recipe_file, data, tmp_path / "RUN", "train.learning_rate=1e-12", "train.patience=2", "train.epochs=9")

    assert result.steps == 6
    assert result.best_step == 0


def test_a_loss_that_is_not_a_number_stops_the_run(recipe_file: Path, data: Path, tmp_path: Path) -> None:
    """
    A learning rate of 1e30 does not train on in silence.
    """
    with pytest.raises(TrainingError, match=r"the loss is .* lower train\.learning_rate"):
        run(recipe_file, data, tmp_path / "RUN", "train.learning_rate=1e30", "train.max_grad_norm=1e30")


def test_what_can_not_be_trained_on_is_refused(recipe_file: Path, data: Path, tmp_path: Path) -> None:
    """
    A folder that is no dataset, an --out that is something else, a file where the run should be.
    """
    with pytest.raises(DatasetError, match="no prepared dataset"):
        run(recipe_file, tmp_path, tmp_path / "RUN")
    with pytest.raises(CheckpointError, match="no run folder"):
        run(recipe_file, data, data)
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises((CheckpointError, StorageError)):
        run(recipe_file, data, tmp_path / "file")


def test_two_trainings_in_one_folder_are_refused(recipe_file: Path, data: Path, tmp_path: Path) -> None:
    """
    The second is told who is there.
    """
    process = start(recipe_file, data, tmp_path / "RUN", "train.epochs=50")
    try:
        while not (tmp_path / "RUN" / "recipe.yaml").exists():
            assert process.poll() is None
            time.sleep(0.05)
        with pytest.raises(BusyError, match="RUN"):
            run(recipe_file, data, tmp_path / "RUN")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_a_full_disk_keeps_the_older_checkpoint_whole(
    recipe_file: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Saving fails as a StorageError; the newest whole checkpoint is the one before.
    """
    original = torch.save
    saved = []

    def full(value: object, file: object, *arguments: object, **options: object) -> None:
        saved.append(file)
        if "step-000003" in str(file):
            raise OSError(28, "No space left on device")
        original(value, file, *arguments, **options)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(StorageError, match="step-000003: No space left"):
        run(recipe_file, data, tmp_path / "RUN")

    newest = latest(tmp_path / "RUN")
    assert newest is not None
    assert newest.name == "step-000002"


def test_two_processes_take_the_steps_of_one(recipe_file: Path, data: Path, corpus: Corpus, tmp_path: Path) -> None:
    """
    Over gloo, two ranks end with one rank's weights, to float32's accuracy: each clip counts once, and the loss is per step.

    With noise and warp, which belong to the clip and not to the rank that takes it.
    """
    hearing = [f"augment.noise={corpus.audio_dirs[0]}", "augment.noise_share=1", "augment.warp=0.1", "augment.mel_masks=2"]
    for count in ("2", "1"):
        arguments = [
            str(recipe_file),
            "--data",
            str(data),
            "--out",
            str(tmp_path / f"RUN{count}"),
            "train.max_steps=4",
            *hearing,
        ]
        command = [Path(sys.executable).with_name("kidspeech"), "train", *arguments, "--num-processes", count]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / f"RUN{count}" / "step-000004" / "model.safetensors") for count in (1, 2))

    for key, value in one.items():
        torch.testing.assert_close(value, two[key], rtol=1e-4, atol=1e-5)


def test_the_metric_of_the_loop_is_the_one_of_the_scorer() -> None:
    """
    "the colour grey" is no error: ChildWER normalises.
    """
    assert ChildWER().compute(predictions=["The colour, grey!"], references=["the color gray"])["wer"] == 0


def test_a_run_folder_is_no_checkpoint(recipe_file: Path, data: Path, tmp_path: Path) -> None:
    """
    Whoever forgets /best is told.
    """
    open_run(tmp_path / "RUN", load_recipe(recipe_file), "key")
    (tmp_path / "RUN" / "best").mkdir()

    with pytest.raises(CheckpointError, match=r"did you mean .*RUN/best"):
        recipe_of(str(tmp_path / "RUN"))
