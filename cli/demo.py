"""
kidspeech demo: the whole way on a corpus that ships with the package, with the commands anybody would type.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from kidspeech.cli import output
from kidspeech.cli.options import OverridesArg
from kidspeech.errors import InputError

if TYPE_CHECKING:
    from kidspeech.config import Recipe

RECIPE = "demo"
GOOD = 0.25  # WER on voices it never heard; it reaches about 0.1, and something is broken where it does not reach this


def demo(
    overrides: OverridesArg = None,
    out: Annotated[
        Path | None, Option("--out", help="Folder to work in; a new one under the temporary folder if not given.")
    ] = None,
) -> None:
    """
    Prepare, train, predict and score in two minutes on a CPU, with no network and no weights from outside.

    A small Whisper with random weights learns sentences spoken by synthetic children, and is measured on voices it has not
    heard. Fails if it does not learn.

    **Examples**

        kidspeech demo

        kidspeech demo --out TRY train.epochs=20
    """
    from kidspeech.demo import corpus

    started = time.monotonic()
    place = out or Path(tempfile.mkdtemp(prefix="kidspeech-demo-"))
    data, run, predictions = place / "DATA", place / "RUN", place / "predictions.jsonl"
    shipped, held = corpus(), data / "validation.jsonl"
    folders = [part for folder in shipped.audio_dirs for part in ("--audio-dir", str(folder))]
    settings = overrides or []
    _type("prepare", RECIPE, "--manifest", str(shipped.manifest), *folders, "--out", str(data), *settings)
    _type("train", RECIPE, "--data", str(data), "--out", str(run), *settings)
    _type("predict", str(run / "best"), str(held), *folders, "--out", str(predictions))
    _type("score", str(predictions), str(held), "--report", str(place / "report.html"), *folders)
    _judge(run, time.monotonic() - started)
    output.done("demo", place)


def own_dataset(recipe: str, settings: Recipe) -> Path:
    """
    Return the dataset of a recipe that brings its own, prepared where it is not there yet.

    Raises:
        InputError: it brings none.
    """
    if recipe != RECIPE:
        made = shlex.join(["kidspeech", "prepare", recipe, "--manifest", "M.jsonl", "--audio-dir", "AUDIO", "--out", "DATA"])
        msg = f"--data is missing: make a dataset with `{made}` and give --data DATA (only the recipe {RECIPE} brings its own)"
        raise InputError(msg)
    from kidspeech.dataset import build_dataset
    from kidspeech.demo import corpus

    shipped, folder = corpus(), Path("data") / RECIPE
    with output.progress() as progress:
        build_dataset(settings, [shipped.manifest], shipped.audio_dirs, folder, progress=progress)
    return folder


def _type(*arguments: str) -> None:
    output.note(f"\n$ {shlex.join(['kidspeech', *arguments])}")
    command = [sys.executable, "-m", "kidspeech.cli.main", *arguments]
    code = subprocess.run(command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, check=False).returncode
    if code:
        raise typer.Exit(code)


def _judge(run: Path, seconds: float) -> None:
    result = json.loads((run / "run.json").read_text(encoding="utf-8"))
    before, after = result["start_wer"], result["best_wer"]
    output.note(f"\nWER on voices it never heard: {before:.2f} before, {after:.2f} after, in {seconds:.0f} s")
    if after > GOOD:
        output.note(f"kidspeech: the demo did not learn: WER {after:.2f}, and {GOOD} is the least it must reach")
        raise typer.Exit(1)
