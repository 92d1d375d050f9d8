"""
Run folders: what is in one, what may be picked up from one, and what never is.

    recipe.yaml          the recipe of the run, every setting
    step-000500/         everything a run needs to go on from there; state.json is readable and written last
    best/                the weights with the lowest WER so far, as plain transformers loads them, and kidspeech.json
    run.json             what came of it
    tensorboard/         curves

Step folders are written beside and renamed. `best/` changes hands in two renames; whoever is killed between them leaves
best.old, which `recover` puts back.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kidspeech.config import Model, Recipe, as_dict, documented, validate
from kidspeech.errors import CheckpointError, writing

STEP = re.compile(r"step-(\d{6,})$")
# Settings that change nothing in what comes out, so that a run may be resumed with others
FREE = {"train.batch_seconds", "train.log_every", "train.loader_workers", "train.save_total_limit", "decode.batch_seconds"}


@dataclass
class TrainState:
    """
    Where a run stands, besides weights, optimizer and random numbers.
    """

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    best_wer: float | None = None
    best_step: int = 0
    stale: int = 0
    """Validations since the best one."""
    seconds: float = 0.0
    """Spent in training, over all starts."""
    processes: int | None = None
    """That trained it last."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One entry a validation: step, wer, groups, loss."""

    def state_dict(self) -> dict[str, Any]:
        """
        Return it as plain data.
        """
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Take it back.
        """
        for name, value in state.items():
            setattr(self, name, value)


@dataclass(frozen=True)
class BestInfo:
    """
    What kidspeech.json in best/ says of its weights.

    Attributes:
        recipe: of the run; decoding follows it in context, language and limits.
        step: of the run; 0 for an average.
        wer: on the validation children; None for an average, whose parts may have validated on different ones.
        groups: WER by age group.
        dataset: key of the prepared dataset, or keys.
        train_children: the children it heard; a WER on them says nothing.
        averaged: the share of each checkpoint in an average, by the name it was given by.
    """

    recipe: dict[str, Any]
    step: int
    wer: float | None
    groups: dict[str, float]
    dataset: str
    train_children: list[str]
    averaged: dict[str, float] = field(default_factory=dict)


def open_run(run: Path, recipe: Recipe, dataset: str, *, force_restart: bool = False) -> None:
    """
    Make the run folder, or check that the one there is of the same run.

    Args:
        run: the folder.
        recipe: what to train.
        dataset: key of the prepared dataset.
        force_restart: move what is there aside, to RUN.1, RUN.2, …

    Raises:
        CheckpointError: it is no run folder, or of another recipe or dataset.
        StorageError: it can't be made.
    """
    if force_restart and run.exists():
        with writing(run):
            run.rename(
                next(aside for number in range(1, 10_000) if not (aside := run.with_name(f"{run.name}.{number}")).exists())
            )
    if not run.exists() or (run.is_dir() and not any(run.iterdir())):
        with writing(run):
            run.mkdir(parents=True, exist_ok=True)
            _write_text(run / "dataset.json", json.dumps({"key": dataset}))
            _write_text(run / "recipe.yaml", documented(recipe))
    recover(run)
    _check_same(run, recipe, dataset)


def recover(run: Path) -> None:
    """
    Put best/ back where a process was killed between the two renames that replace it.
    """
    if (run / "best.old").is_dir() and not (run / "best").exists():
        (run / "best.old").rename(run / "best")


def latest(run: Path) -> Path | None:
    """
    Return the newest whole step folder.
    """
    whole = [path for path in run.glob("step-*") if STEP.match(path.name) and (path / "state.json").is_file()]
    return max(whole, key=_number, default=None)


@contextmanager
def step_folder(run: Path, state: TrainState, *, main: bool, meet: Callable[[], None]) -> Iterator[Path]:
    """
    Give a folder to save into, and make it step-NNNNNN when the block is through in every process.

    Args:
        run: the run folder.
        state: goes into state.json, as the last file.
        main: whether this process is the one that makes and renames; the others only write into the folder.
        meet: waits for the other processes: for a folder to write into, and for all to have written.
    """
    aside, final = run / f"step-{state.step:06d}.tmp", run / f"step-{state.step:06d}"
    with writing(final):
        if main:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        meet()
        yield aside
        meet()
        if main:
            _write_text(aside / "state.json", json.dumps(state.state_dict(), indent=2))
            shutil.rmtree(final, ignore_errors=True)
            aside.rename(final)


def rotate(run: Path, keep: int) -> None:
    """
    Remove step folders but the newest *keep*, and what killed processes left.
    """
    whole = sorted((path for path in run.glob("step-*") if STEP.match(path.name)), key=_number)
    for path in [*whole[:-keep], *run.glob("step-*.tmp")]:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def best_folder(run: Path, info: BestInfo) -> Iterator[Path]:
    """
    Give a folder to save into, and make it best/ when the block is through.
    """
    aside, final, old = run / "best.tmp", run / "best", run / "best.old"
    with writing(final):
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        yield aside
        write_best(aside, info)
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():
            final.rename(old)
        aside.rename(final)
        shutil.rmtree(old, ignore_errors=True)


def write_best(folder: Path, info: BestInfo) -> None:
    """
    Write kidspeech.json into a checkpoint folder.
    """
    _write_text(folder / "kidspeech.json", json.dumps(asdict(info), indent=2))


def read_best(folder: Path) -> BestInfo | None:
    """
    Return what kidspeech.json in a checkpoint folder says; None for a folder that kidspeech did not write.

    Raises:
        CheckpointError: it can't be read.
    """
    path = folder / "kidspeech.json"
    if not path.is_file():
        return None
    try:
        return BestInfo(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        msg = f"{path} was not written by this kidspeech ({error})"
        raise CheckpointError(msg) from error


def recipe_of(checkpoint: str) -> tuple[Recipe, BestInfo | None]:
    """
    Return the recipe to decode *checkpoint* with, and what is known of its training.

    Args:
        checkpoint: best/ of a run, any folder transformers loads, or a Hub id.

    Raises:
        CheckpointError: a run folder, or a folder that is no checkpoint.
    """
    folder = Path(checkpoint)
    if folder.is_dir() and not (folder / "config.json").is_file():
        hint = f"; did you mean {folder / 'best'}?" if (folder / "best").is_dir() else ""
        msg = f"{folder} is no checkpoint, it has no config.json{hint}"
        raise CheckpointError(msg)
    info = read_best(folder)
    if info is None:
        return Recipe(model=Model(pretrained=checkpoint, context="padded")), None
    recipe, problems = validate(info.recipe)
    if recipe is None:
        msg = f"{folder / 'kidspeech.json'} holds a recipe of another kidspeech: {'; '.join(problems)}"
        raise CheckpointError(msg)
    return recipe.model_copy(
        update={"model": recipe.model.model_copy(update={"pretrained": checkpoint, "random": None})}
    ), info


def run_recipe(run: Path) -> Recipe:
    """
    Return the recipe of a run.

    Raises:
        CheckpointError: the folder is no run's, or of another kidspeech.
    """
    path = run / "recipe.yaml"
    try:
        recipe, problems = validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        msg = f"{run} is no run folder, its recipe.yaml can't be read ({error})"
        raise CheckpointError(msg) from error
    if recipe is None:
        msg = f"{path} holds a recipe of another kidspeech: {'; '.join(problems)}"
        raise CheckpointError(msg)
    return recipe


def _check_same(run: Path, recipe: Recipe, dataset: str) -> None:
    try:
        then, problems = validate(yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8")))
        key = json.loads((run / "dataset.json").read_text(encoding="utf-8"))["key"]
    except (OSError, ValueError, KeyError, yaml.YAMLError) as error:
        msg = f"{run} is not empty and no run folder; choose another --out"
        raise CheckpointError(msg) from error
    changed = _changed(then, recipe) if then else problems
    changed += ["the dataset"] if key != dataset else []
    if changed:
        msg = (
            f"{run} holds a run with other settings ({'; '.join(changed)}); "
            "give those again to resume it, --force-restart to begin anew, or another --out"
        )
        raise CheckpointError(msg)


def _changed(then: Recipe, now: Recipe) -> list[str]:
    old, new = as_dict(then), as_dict(now)
    weights = [
        {name: corpus.weight for name, corpus in recipe.data.corpora.items() if corpus.weight != 1} for recipe in (then, now)
    ]
    return [f"weights of data.corpora were {weights[0]}, are {weights[1]}"] * (weights[0] != weights[1]) + [
        f"{section}.{key} was {value}, is {new[section][key]}"
        for section in ("model", "train", "augment", "decode")
        for key, value in old[section].items()
        if value != new[section][key] and f"{section}.{key}" not in FREE
    ]


def _number(path: Path) -> int:
    match = STEP.match(path.name)
    return int(match[1]) if match else -1


def _write_text(path: Path, text: str) -> None:
    aside = path.with_name(f"{path.name}.tmp")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
