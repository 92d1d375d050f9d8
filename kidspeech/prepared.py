"""
A prepared dataset's folder: what is in it, written whole, and opened for a model.

    train/ validation/      Arrow, see kidspeech.arrow_folder
    train.jsonl …           the manifest lines of each side, to predict and score on; not of copies
    skipped.jsonl           utterances that could not be used or are on no side, each with its reason
    README.md               the dataset's card: what is in it, column by column, and how it was made
    prepare.json            what was done with what: settings, counts, shares, notes

It is written beside and renamed, so a folder with a prepare.json is whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kidspeech import __version__
from kidspeech.clips import Skipped
from kidspeech.errors import DatasetError
from kidspeech.folders import written_aside
from kidspeech.manifest import write_jsonl
from kidspeech.progress import Progress, silent
from kidspeech.remote_folder import local_folder

if TYPE_CHECKING:  # imported where they are used: they take seconds, and whoever only reads prepare.json needs none of them
    from datasets import Dataset

    from kidspeech.arrow_folder import Example
    from kidspeech.models import BaseASRModel


@dataclass(frozen=True)
class Prepared:
    """
    What prepare.json says.

    Attributes:
        key: hash of everything the dataset was made from and with.
        recipe: the sections data, choose and model.
        features: settings of the featurizer.
        labels: settings of the labels.
        sides: utterances, hours, children of each split.
        shares: share of the utterances that validate, overall and by age group.
        skipped: number of utterances in skipped.jsonl by kind of reason.
        notes: what a reader of the WER should know.
        version: of kidspeech.
        inputs: hash of all that the key depends on, as far as it is known without opening a tokenizer; "" if it is not.
    """

    key: str
    recipe: dict[str, Any]
    features: dict[str, Any]
    labels: dict[str, Any]
    sides: dict[str, dict[str, float]]
    shares: dict[str, float]
    skipped: dict[str, int]
    notes: list[str]
    version: str = __version__
    inputs: str = ""


def read_prepared(folder: Path) -> Prepared | None:
    """
    Return what prepare.json says, or None where there is none: no dataset, or one that was not finished.

    Raises:
        DatasetError: it can't be understood.
    """
    path = folder / "prepare.json"
    if not path.is_file():
        return None
    try:
        return Prepared(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        msg = f"{path} was not written by this kidspeech ({error}); run kidspeech prepare again into a new folder"
        raise DatasetError(msg) from error


def load_dataset(place: Path | str, model: BaseASRModel, progress: Progress = silent) -> tuple[Dataset, Dataset, Prepared]:
    """
    Open a prepared dataset for *model*: training side, validation side, and what is known of them.

    Args:
        place: its folder, or an fsspec URL, from which it is fetched once.
        model: what it must have been made for.
        progress: told of the fetching.

    Raises:
        DatasetError: there is none, it is unfinished, or its features or labels are another model's.
    """
    folder = local_folder(place, progress=progress)
    prepared = read_prepared(folder)
    if prepared is None:
        msg = f"{folder} is no prepared dataset (it has no prepare.json); make it with kidspeech prepare"
        raise DatasetError(msg)
    for what, then, now in (
        ("features", prepared.features, model.featurizer.settings),
        ("labels", prepared.labels, model.label_settings),
    ):
        if then != now:
            msg = f"{folder} holds {what} made for another model; run kidspeech prepare again with this recipe"
            raise DatasetError(msg)
    from datasets import load_from_disk

    sides = load_from_disk(str(folder))
    return sides["train"], sides["validation"], prepared


def check_place(out: Path) -> None:
    """
    Make sure that a dataset may be written to *out*.

    Raises:
        DatasetError: something else is there.
    """
    if out.exists() and not (out.is_dir() and ((out / "prepare.json").is_file() or not any(out.iterdir()))):
        msg = f"{out} exists and is no prepared dataset; choose another --out, or remove it"
        raise DatasetError(msg)


def write_prepared(
    out: Path, prepared: Prepared, sides: Mapping[str, Sequence[Example]], skipped: Sequence[Skipped], progress: Progress
) -> None:
    """
    Write the dataset *out*, whole or not at all.

    Raises:
        StorageError: the disk is full; *out* is as it was before.
    """
    from kidspeech.arrow_folder import write_splits
    from kidspeech.card import card

    with written_aside(out) as aside:
        done = 0
        for rows in write_splits(aside, sides):
            done += rows
            progress("writing dataset", done, sum(map(len, sides.values())))
        for name, side in sides.items():
            write_jsonl(aside / f"{name}.jsonl", (example.utterance.as_line() for example in side if example.speed == 1))
        write_jsonl(aside / "skipped.jsonl", map(asdict, skipped))
        (aside / "README.md").write_text(card(asdict(prepared), sides), encoding="utf-8")
        (aside / "prepare.json").write_text(json.dumps(asdict(prepared), indent=2), encoding="utf-8")


def count(side: Sequence[Example]) -> dict[str, float]:
    """
    Return how much a side holds.
    """
    seconds = sum(example.row.small["seconds"] for example in side)
    children = {example.utterance.child_id for example in side}
    return {"utterances": len(side), "hours": round(seconds / 3600, 4), "children": len(children)}
