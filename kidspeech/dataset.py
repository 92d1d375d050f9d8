"""
From manifests to a prepared dataset: read, check, featurize through the cache, split by child, write.

The folder that comes out is described in kidspeech.prepared. Features come from the cache; changing the
split, a limit or the tokenizer opens no audio.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kidspeech import FEATURES_VERSION, __version__
from kidspeech.clips import Clip, Skipped
from kidspeech.config import Data, Model, Recipe, as_dict
from kidspeech.errors import DatasetError, SplitError
from kidspeech.folders import default_cache, locked
from kidspeech.manifest import Utterance, write_jsonl
from kidspeech.prepared import Prepared, check_place, count, load_dataset, read_prepared, write_prepared
from kidspeech.progress import Progress, silent
from kidspeech.remote_folder import is_remote, staging, upload
from kidspeech.sources import gather, sources_of

__all__ = ["Prepared", "build_dataset", "load_dataset"]

if TYPE_CHECKING:  # imported where they are used: torch, transformers, datasets and scikit-learn take seconds, and
    # a second run with nothing changed needs none of them
    from kidspeech.arrow_folder import Example
    from kidspeech.models import BaseASRModel
    from kidspeech.split import Split


def build_dataset(
    recipe: Recipe,
    manifests: Sequence[Path],
    audio_dirs: Sequence[Path],
    out: Path | str,
    *,
    cache: Path | None = None,
    progress: Progress = silent,
) -> Prepared:
    """
    Make the dataset *out*, or find that it is there already.

    Args:
        recipe: sections data, choose and model are used.
        manifests: JSONL files, read as one; none where the recipe names corpora.
        audio_dirs: folders to look for audio in, by file name; none for the folders of the manifests.
        out: the folder or fsspec URL to make; a dataset that is there is replaced when the new one is whole.
        cache: feature cache; default_cache() where not given.
        progress: told of the work.

    Raises:
        ManifestError, SplitError, RecipeError, CheckpointError, ScoreError: what they say.
        DatasetError: more utterances are unusable than data.max_skipped; none is left to train on; or *out* is something
            else than a dataset.
        BusyError: another process makes this dataset or fills this cache.
        StorageError: the disk is full, and *out* is as it was before; or a URL can't be written.
    """
    store = cache or default_cache()
    if is_remote(out):
        prepared = build_dataset(recipe, manifests, audio_dirs, staging(str(out), store), cache=store, progress=progress)
        upload(staging(str(out), store), str(out), progress)
        return prepared
    out = Path(out)
    utterances, clips, skipped = gather(sources_of(recipe.data, manifests, audio_dirs), recipe.data.shared_children)
    content = _content(recipe, utterances, clips)
    inputs = _inputs(recipe.model, content)
    if inputs and (there := read_prepared(out)) and there.inputs == inputs:
        return there
    from kidspeech.examples import featurize
    from kidspeech.models import create_model
    from kidspeech.selection import choose, copies

    model = create_model(recipe.model)
    key = _key(model, content)
    with locked(out.parent / f".{out.name}.lock", f"the dataset {out}"):
        check_place(out)
        if (there := read_prepared(out)) and there.key == key:
            return there
        examples, unusable = featurize(utterances, clips, model, recipe.data, store, progress)
        skipped += unusable
        _check_share(skipped, len(utterances), recipe.data, out)
        split = _split(utterances, [example.utterance for example in examples], recipe.data)
        sides, beside = _sides(examples, split)
        chosen, left_out = choose(sides["train"], recipe.choose)
        copied, too_long = copies(chosen, recipe.choose, recipe.data, model, store, progress)
        sides["train"] = chosen + copied
        skipped += beside + left_out + too_long
        prepared = Prepared(
            key,
            _settings(recipe),
            model.featurizer.settings,
            model.label_settings,
            {name: count(side) for name, side in sides.items()},
            split.shares,
            _counted(skipped),
            split.notes + _notes(copied, recipe.choose.speeds),
            inputs=inputs,
        )
        write_prepared(out, prepared, sides, skipped, progress)
        return prepared


def _content(recipe: Recipe, utterances: Sequence[Utterance], clips: Mapping[str, Clip]) -> str:
    settings = _settings(recipe)
    val_ids = _text_of(Path(recipe.data.val_ids), "data.val_ids") if recipe.data.val_ids else ""
    teacher = _text_of(Path(recipe.choose.teacher), "choose.teacher") if recipe.choose.teacher else ""
    digest = hashlib.sha256(json.dumps([settings["data"], settings["choose"], val_ids, teacher]).encode())
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
    tree["data"]["workers"] = None  # changes nothing, and weights only what training draws
    for corpus in tree["data"]["corpora"].values():
        del corpus["weight"]
    return {name: tree[name] for name in ("data", "choose", "model")}


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
    wanted = {line.strip() for line in _text_of(path, "data.val_ids").splitlines()} - {""}
    unknown = sorted(wanted - known)
    if unknown:
        msg = f"{path}: {len(unknown)} ids stand in no manifest ({', '.join(unknown[:3])} …); take them out"
        raise SplitError(msg)
    return wanted


def _text_of(path: Path, setting: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{setting}: can't read {path} ({error}); give a text file with one utterance a line"
        raise SplitError(msg) from error


def _sides(examples: Sequence[Example], split: Split) -> tuple[dict[str, list[Example]], list[Skipped]]:
    sides: dict[str, list[Example]] = {"train": [], "validation": []}
    beside: list[Skipped] = []
    for example, validates, dropped in zip(examples, split.validation.tolist(), split.dropped.tolist(), strict=True):
        if dropped:
            reason = "not trained on, since others of its child validate (data.drop_val_children)"
            beside.append(Skipped(example.utterance.utterance_id, example.row.small["path"], reason))
        else:
            sides["validation" if validates else "train"].append(example)
    return sides, beside


def _notes(copied: Sequence[Example], speeds: Sequence[float]) -> list[str]:
    told = " and ".join(f"{speed:g}" for speed in speeds)
    return [f"{len(copied)} of the training utterances are copies of others, at the speeds {told}"] if copied else []
