"""
The command line: users' mistakes exit with 2 and one plain sentence, data goes to stdout, everything else to stderr.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kidspeech import __version__
from kidspeech.cli.main import main
from kidspeech.config import load_recipe, shipped_recipes
from kidspeech.dataset import build_dataset
from kidspeech.launcher import launcher_options
from kidspeech.train import train

from corpora import Corpus

pytestmark = pytest.mark.integration


def kidspeech(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kidspeech.cli.main", *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture(name="mistake")
def _mistake(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """
    Return what a command with a mistake in it says, having checked that it exits with 2, in words, and prints no data.
    """

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert (left.value.code, printed.out) == (2, ""), printed.err
        return " ".join(printed.err.split())

    return run


def test_users_mistakes_exit_with_2_and_name_the_remedy(
    mistake: Callable[..., str], corpus: Corpus, recipe_file: Path, tmp_path: Path
) -> None:
    """
    One sentence each, for what people really get wrong.
    """
    out = ["--out", tmp_path / "OUT"]
    audio = corpus.audio_options()
    broken = corpus.manifest.with_name("broken.jsonl")
    broken.write_text(corpus.manifest.read_text(encoding="utf-8") + '{"utterance_id":\n', encoding="utf-8")

    assert "can't read nowhere.jsonl: No such file" in mistake("prepare", recipe_file, "--manifest", "nowhere.jsonl", *out)
    assert "broken.jsonl, line 28: broken JSON" in mistake("prepare", recipe_file, "--manifest", broken, *audio, *out)
    assert "train.epoch: no such setting" in mistake("train", recipe_file, "--data", tmp_path, *out, "train.epoch=3")
    assert "no recipe whisper-tinny" in mistake("train", "whisper-tinny", "--data", tmp_path, *out)
    assert "no model 'whispr'" in mistake("prepare", recipe_file, *corpus.options(), *out, "model.family=whispr")
    assert "no prepared dataset" in mistake("train", "--worker", recipe_file, "--data", tmp_path, *out)
    assert "kidspeech prepare whisper-small --manifest" in mistake("train", "whisper-small", *out)
    assert "no config.json" in mistake("predict", tmp_path, corpus.manifest, *audio, *out)
    assert not (tmp_path / "OUT").exists()


def test_recipes_are_listed_and_printed_on_stdout(tmp_path: Path) -> None:
    """
    `kidspeech recipe NAME > mine.yaml` makes a file that loads.
    """
    listed, printed = kidspeech("recipe"), kidspeech("recipe", "whisper-small", "train.epochs=7")
    (tmp_path / "mine.yaml").write_text(printed.stdout, encoding="utf-8")

    assert all(name in listed.stdout for name in shipped_recipes())
    assert load_recipe(tmp_path / "mine.yaml") == load_recipe("whisper-small", ["train.epochs=7"])
    assert printed.stderr == ""


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """
    `kidspeech --version` prints it and nothing else.
    """
    with pytest.raises(SystemExit) as left:
        main(["--version"])

    assert (left.value.code, capsys.readouterr().out) == (0, f"{__version__}\n")


COMMANDS = ["prepare", "inspect", "train", "average", "predict", "score", "submit", "export", "push", "recipe", "demo"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """
    The help of each command holds a command line one can copy.
    """
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    usage, _, rest = capsys.readouterr().out.partition(f"kidspeech {command}")

    assert left.value.code == 0
    assert "Usage:" in usage
    assert f"kidspeech {command}" in rest


@pytest.mark.slow
def test_prepare_train_predict_score_end_to_end(corpus: Corpus, recipe_file: Path, tmp_path: Path) -> None:
    """
    The four commands in a row, a resume in between, and a WER on stdout that equals the one in run.json.
    """
    data, run, predictions = tmp_path / "DATA", tmp_path / "RUN", tmp_path / "predictions.jsonl"
    held = data / "validation.jsonl"
    assert kidspeech("prepare", recipe_file, *corpus.options(), "--out", data).returncode == 0
    command = ["train", recipe_file, "--data", data, "--out", run]
    assert kidspeech(*command).returncode == 0
    (run / "run.json").unlink()  # as if it had been killed before the end
    resumed = kidspeech(*command)
    assert resumed.returncode == 0
    assert f"checkpoint: {run / 'best'}" in resumed.stderr
    predicted = kidspeech("predict", run / "best", held, *corpus.audio_options(), "--out", predictions)
    assert predicted.returncode == 0, predicted.stderr
    assert f"next: kidspeech score {predictions} {held}" in predicted.stderr
    scored = kidspeech("score", predictions, held, "--json")

    assert json.loads(scored.stdout)["total"]["wer"] == json.loads((run / "run.json").read_text(encoding="utf-8"))["best_wer"]


def test_clips_that_can_not_be_used_show_in_predicts_exit_code(
    corpus: Corpus, recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    0 would tell a script that all is well.
    """
    data, run = tmp_path / "DATA", tmp_path / "RUN"
    settings = load_recipe(recipe_file, ["train.max_steps=1"])
    build_dataset(settings, [corpus.manifest], corpus.audio_dirs, data)
    train(settings, data, run)
    (corpus.audio_dirs[0] / "U_000.flac").write_bytes(b"")
    with pytest.raises(SystemExit) as left:
        main(["predict", str(run / "best"), str(corpus.manifest), *corpus.audio_options(), "--out", str(tmp_path / "p.jsonl")])

    assert left.value.code == 1
    assert "1 clips could not be used" in capsys.readouterr().err


@pytest.mark.unit
def test_the_launcher_is_accelerates_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    With a configuration of `accelerate config` and no number given, that configuration decides; else one process.
    """
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert launcher_options(None)[:2] == ["--num_processes", "1"]
    assert launcher_options(4)[-3:] == ["--multi_gpu", "--main_process_port", "0"]  # two runs may start at once
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate" / "default_config.yaml").write_text("num_processes: 8", encoding="utf-8")
    assert launcher_options(None) == []
