"""
From manifests to a prepared dataset: read, check, featurize through the cache, split by child, write.

The folder that comes out:

    train/ validation/      Arrow, see kidspeech.arrow_folder
    train.jsonl …           the manifest lines of each side, to predict and score on
    skipped.jsonl           utterances that could not be used, each with its reason
    prepare.json            what was done with what: settings, counts, shares, notes

It is written beside and renamed, so a folder with a prepare.json is whole. Features come from the cache; changing the
split, a limit or the tokenizer opens no audio.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kidspeech import FEATURES_VERSION, __version__
from kidspeech.clips import Clip, Skipped, locate
from kidspeech.config import Data, Model, Recipe, as_dict
from kidspeech.errors import DatasetError, SplitError, writing
from kidspeech.manifest import Utterance, read_manifest, write_jsonl
from kidspeech.progress import Progress, silent

if TYPE_CHECKING:  # imported where they are used: torch, transformers, datasets and scikit-learn take seconds, and
    # a second run with nothing changed needs none of them
    from datasets import Dataset

    from kidspeech.arrow_folder import Example
    from kidspeech.models import BaseASRModel
    from kidspeech.split import Split


@dataclass(frozen=True)
class Prepared:
    """
    What prepare.json says.

    Attributes:
        key: hash of everything the dataset was made from and with.
        recipe: the sections data and model.
        features: settings of the featurizer.
        labels: settings of the labels.
        sides: utterances, hours, children of each split.
        shares: share of the utterances that validate, overall and by age group.
        skipped: number of unusable utterances by kind of reason.
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


def build_dataset(
    recipe: Recipe,
    manifests: Sequence[Path],
    audio_dirs: Sequence[Path],
    out: Path,
    *,
    cache: Path | None = None,
    progress: Progress = silent,
) -> Prepared:
    """
    Make the dataset *out*, or find that it is there already.

    Args:
        recipe: sections data and model are used.
        manifests: JSONL files, read as one.
        audio_dirs: folders to look for audio in, by file name; none for the folders of the manifests.
        out: the folder to make; a dataset that is there is replaced when the new one is whole.
        cache: feature cache; default_cache() where not given.
        progress: told of the work.

    Raises:
        ManifestError, SplitError, RecipeError, CheckpointError: what they say.
        DatasetError: more utterances are unusable than data.max_skipped; or *out* is something else than a dataset.
        BusyError: another process makes this dataset or fills this cache.
        StorageError: the disk is full; *out* is as it was before.
    """
    utterances = read_manifest(manifests)
    clips, skipped = locate(utterances, audio_dirs or [path.parent for path in manifests])
    content = _content(recipe, utterances, clips)
    inputs = _inputs(recipe.model, content)
    if inputs and (there := _read(out)) and there.inputs == inputs:
        return there
    from kidspeech.cache import default_cache, locked
    from kidspeech.examples import featurize
    from kidspeech.models import create_model

    model = create_model(recipe.model)
    key = _key(model, content)
    with locked(out.parent / f".{out.name}.lock", f"the dataset {out}"):
        _check_place(out)
        if (there := _read(out)) and there.key == key:
            return there
        examples, unusable = featurize(utterances, clips, model, recipe.data, cache or default_cache(), progress)
        skipped += unusable
        _check_share(skipped, len(utterances), recipe.data, out)
        split = _split(utterances, [example.utterance for example in examples], recipe.data)
        return _write(out, key, inputs, recipe, model, examples, split, skipped, progress)


def load_dataset(folder: Path, model: BaseASRModel) -> tuple[Dataset, Dataset, Prepared]:
    """
    Open a prepared dataset for *model*: training side, validation side, and what is known of them.

    Raises:
        DatasetError: there is none, it is unfinished, or its features or labels are another model's.
    """
    prepared = _read(folder)
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


def _content(recipe: Recipe, utterances: Sequence[Utterance], clips: Mapping[str, Clip]) -> str:
    val_ids = _text_of(Path(recipe.data.val_ids)) if recipe.data.val_ids else ""
    digest = hashlib.sha256(json.dumps([_settings(recipe)["data"], val_ids]).encode())
    for utterance in utterances:
        digest.update(repr((utterance, clips.get(utterance.utterance_id))).encode())
    return digest.hexdigest()


def _key(model: BaseASRModel, content: str) -> str:
    return hashlib.sha256(json.dumps([content, model.featurizer.settings, model.label_settings]).encode()).hexdigest()[:16]


def _inputs(model: Model, content: str) -> str:
    origin = "random" if model.random is not None else _origin(str(model.pretrained))
    packages = [FEATURES_VERSION, __version__, *(version(name) for name in ("transformers", "tokenizers", "openai-whisper"))]
    known = [content, model.model_dump(), origin, packages]
    return hashlib.sha256(json.dumps(known, default=str).encode()).hexdigest()[:16] if origin else ""


def _origin(pretrained: str) -> str:
    # a folder's files as they are now; of a Hub id the commit that lies in its cache; "" where there is none of both
    if Path(pretrained).is_dir():
        with os.scandir(pretrained) as files:
            return repr(sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()))
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(pretrained, "preprocessor_config.json")
    except HFValidationError:
        return ""
    return found if isinstance(found, str) else ""


def _settings(recipe: Recipe) -> dict[str, Any]:
    tree = as_dict(recipe)
    return {"data": tree["data"] | {"workers": None}, "model": tree["model"]}  # the number of workers changes nothing


def _check_place(out: Path) -> None:
    if out.exists() and not (out.is_dir() and ((out / "prepare.json").is_file() or not any(out.iterdir()))):
        msg = f"{out} exists and is no prepared dataset; choose another --out, or remove it"
        raise DatasetError(msg)


def _read(folder: Path) -> Prepared | None:
    path = folder / "prepare.json"
    if not path.is_file():
        return None
    try:
        return Prepared(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        msg = f"{path} was not written by this kidspeech ({error}); run kidspeech prepare again into a new folder"
        raise DatasetError(msg) from error


def _check_share(skipped: Sequence[Skipped], total: int, data: Data, out: Path) -> None:
    listing = out.with_name(f"{out.name}.skipped.jsonl")
    if len(skipped) <= data.max_skipped * total:
        listing.unlink(missing_ok=True)
        return
    write_jsonl(listing, map(asdict, skipped))
    reasons = ", ".join(f"{count} {reason}" for reason, count in _counted(skipped).items())
    msg = (
        f"{len(skipped)} of {total} utterances can't be used ({reasons}), and data.max_skipped allows {data.max_skipped:.1%}; "
        f"all are listed in {listing}: mend them, or raise data.max_skipped"
    )
    raise DatasetError(msg)


def _counted(skipped: Sequence[Skipped]) -> dict[str, int]:
    return dict(Counter(entry.reason.partition(":")[0] for entry in skipped).most_common())


def _split(given: Sequence[Utterance], usable: Sequence[Utterance], data: Data) -> Split:
    from kidspeech.split import split_by_child, split_by_ids

    children = [utterance.child_id for utterance in usable]
    strata = [str(getattr(utterance, data.stratify_by)) if data.stratify_by else "every child" for utterance in usable]
    if data.val_ids is None:
        return split_by_child(children, strata, val_ratio=data.val_ratio, seed=data.seed, tolerance=data.split_tolerance)
    wanted = _listed(Path(data.val_ids), {utterance.utterance_id for utterance in given})
    ids = [utterance.utterance_id for utterance in usable]
    return split_by_ids(ids, children, strata, val=wanted, drop=data.drop_val_children)


def _listed(path: Path, known: set[str]) -> set[str]:
    wanted = {line.strip() for line in _text_of(path).splitlines()} - {""}
    unknown = sorted(wanted - known)
    if unknown:
        msg = f"{path}: {len(unknown)} ids stand in no manifest ({', '.join(unknown[:3])} …); take them out"
        raise SplitError(msg)
    return wanted


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"data.val_ids: can't read {path} ({error}); give a text file with one utterance id a line"
        raise SplitError(msg) from error


def _write(
    out: Path,
    key: str,
    inputs: str,
    recipe: Recipe,
    model: BaseASRModel,
    examples: Sequence[Example],
    split: Split,
    skipped: Sequence[Skipped],
    progress: Progress,
) -> Prepared:
    import numpy as np

    from kidspeech.arrow_folder import write_splits

    train = [examples[place] for place in np.flatnonzero(~split.validation & ~split.dropped).tolist()]
    validation = [examples[place] for place in np.flatnonzero(split.validation).tolist()]
    sides = {"train": train, "validation": validation}
    settings = _settings(recipe)
    counts = {name: _count(side) for name, side in sides.items()}
    prepared = Prepared(
        key,
        settings,
        model.featurizer.settings,
        model.label_settings,
        counts,
        split.shares,
        _counted(skipped),
        split.notes,
        inputs=inputs,
    )
    aside = out.with_name(f".{out.name}.tmp")
    with writing(out), discarded_on_error(aside):
        aside.mkdir(parents=True)
        done = 0
        for rows in write_splits(aside, sides):
            done += rows
            progress("writing dataset", done, len(train) + len(validation))
        for name, side in sides.items():
            write_jsonl(aside / f"{name}.jsonl", (example.utterance.as_line() for example in side))
        write_jsonl(aside / "skipped.jsonl", map(asdict, skipped))
        (aside / "prepare.json").write_text(json.dumps(asdict(prepared), indent=2), encoding="utf-8")
        _replace(aside, out)
    return prepared


@contextmanager
def discarded_on_error(aside: Path) -> Iterator[None]:
    """
    Start without *aside*, and leave none behind if the block fails: on a full disk it is what fills it.
    """
    shutil.rmtree(aside, ignore_errors=True)
    try:
        yield
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _count(side: Sequence[Example]) -> dict[str, float]:
    seconds = sum(example.row.small["seconds"] for example in side)
    children = {example.utterance.child_id for example in side}
    return {"utterances": len(side), "hours": round(seconds / 3600, 4), "children": len(children)}


def _replace(new: Path, old: Path) -> None:
    retired = old.with_name(f".{old.name}.old")
    shutil.rmtree(retired, ignore_errors=True)
    if old.exists():
        old.rename(retired)
    new.rename(old)
    shutil.rmtree(retired, ignore_errors=True)
