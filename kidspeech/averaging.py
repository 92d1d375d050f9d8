"""
Several checkpoints into one: the mean of their weights.

Checkpoints that were tuned from the same weights lie in one valley, and their mean is often better than the best of them:
Wortsman et al., Model soups (2022). Summed in float64 tensor by tensor, so that memory stays at a few tensors, and rounded
once. What the mean was trained on is all that its parts were: their children count as heard.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from kidspeech.checkpoint import STEP, BestInfo, read_best, recipe_of, run_recipe, write_best
from kidspeech.config import Recipe, as_dict
from kidspeech.errors import CheckpointError
from kidspeech.folders import written_aside
from kidspeech.progress import Progress, silent
from kidspeech.weights import ADAPTER_CONFIG, Adapted, Layout, Weights, write_safetensors

# Of config.json: what says how to train or where from, and not what is computed
FREE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "apply_spec_augment", "init_std"}
FREE |= {"dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop", "decoder_layerdrop"}
FREE |= {f"mask_{axis}_{key}" for axis in ("time", "feature") for key in ("length", "min_masks", "prob")}


@dataclass(frozen=True)
class Part:
    """
    One of the checkpoints.

    Attributes:
        name: as it was given.
        home: folder with its configuration and tokenizer.
        weights: its tensors.
        recipe: to decode it with.
        info: what is known of its training.
    """

    name: str
    home: Path
    weights: Weights | Adapted
    recipe: Recipe
    info: BestInfo | None

    @cached_property
    def config(self) -> dict[str, Any]:
        """
        What config.json says.
        """
        content: dict[str, Any] = json.loads((self.home / "config.json").read_text(encoding="utf-8"))
        return content

    @cached_property
    def layouts(self) -> dict[str, Layout]:
        """
        What its tensors are, without those that only repeat another: a step folder may have them, a checkpoint has not.
        """
        config = self.config
        network = getattr(transformers, config.get("architectures", [""])[0], None)
        tied = getattr(network, "_tied_weights_keys", None) or () if config.get("tie_word_embeddings", True) else ()
        return {name: layout for name, layout in self.weights.layouts.items() if name not in tied}

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """
        Ids by token.
        """
        try:
            vocabulary: dict[str, int] = transformers.AutoTokenizer.from_pretrained(self.home).get_vocab()
        except (OSError, ValueError) as error:
            msg = f"{self.name} has no tokenizer that transformers loads; copy the files of its base's beside its config.json"
            raise CheckpointError(msg) from error
        return vocabulary


def average(
    checkpoints: Sequence[str], out: Path, *, weights: Sequence[float] | None = None, progress: Progress = silent
) -> BestInfo:
    """
    Write the weighted mean of *checkpoints* as a folder that plain transformers loads.

    Args:
        checkpoints: two or more of: a run (its best/ is taken), a step folder of a run, a folder that transformers loads,
            a folder with a LoRA adapter (of which the base with the adapter merged is taken), or a Hub id.
        out: the folder to make.
        weights: one above 0 for each checkpoint; only their ratios count. All alike where not given.
        progress: told of the tensors.

    Returns:
        What kidspeech.json in *out* says.

    Raises:
        CheckpointError: there is no such checkpoint; they differ in architecture, vocabulary, language or encoder context;
            or *out* is not empty.
        StorageError: the disk is full.
    """
    shares = list(weights) if weights is not None else [1.0] * len(checkpoints)
    _check_shares(shares, len(checkpoints))
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        msg = f"{out} is not empty; choose another --out"
        raise CheckpointError(msg)
    parts = [_part(name) for name in checkpoints]
    for part in parts[1:]:
        _check_same(parts[0], part)
    info = _info(parts, shares)
    with written_aside(out) as aside:
        _write_weights(aside / "model.safetensors", parts, shares, progress)
        _copy_rest(parts[0], aside, _types(parts))
        write_best(aside, info)
    return info


def _check_shares(shares: Sequence[float], count: int) -> None:
    if count < 2:
        raise CheckpointError("give two or more checkpoints to average")
    if len(shares) != count or min(shares) <= 0:
        msg = f"{len(shares)} weights for {count} checkpoints; give one above 0 for each, in their order"
        raise CheckpointError(msg)


def _part(name: str) -> Part:
    folder = _folder(name)
    whole = (folder / "config.json").is_file()
    if STEP.match(folder.name) and not whole:
        home = folder.parent / "best"
        return Part(name, home, _weights(folder), run_recipe(folder.parent), read_best(home))
    if (folder / "best").is_dir() and not whole:
        folder = folder / "best"
    home = _base(folder) or folder
    recipe, info = recipe_of(str(home))
    return Part(name, home, _weights(folder), recipe, info)


def _weights(folder: Path) -> Weights | Adapted:
    base = _base(folder)
    return Weights(folder) if base is None else Adapted(Weights(base), folder)


def _base(folder: Path) -> Path | None:
    """
    Return the folder of what an adapter adapts, None for whole weights.
    """
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        return None
    origin = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not origin:
        msg = f"{path} does not say what it adapts; put base_model_name_or_path into it"
        raise CheckpointError(msg)
    return _folder(origin)


def _folder(name: str) -> Path:
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.txt", "*.safetensors"]))
    except (OSError, ValueError, HfHubHTTPError) as error:
        msg = f"no checkpoint at {name}: it is no folder, and no Hub id that can be fetched now"
        raise CheckpointError(msg) from error


def _check_same(first: Part, other: Part) -> None:
    differences = (
        *_differing("config.json", _architecture(first), _architecture(other)),
        *_differing("its weights", _shapes(first), _shapes(other)),
        *_differing("its vocabulary", first.vocabulary, other.vocabulary),
        *_differing("its training", _training(first), _training(other)),
    )
    if differences:
        msg = f"{other.name} can't be averaged with {first.name}: {differences[0]}"
        raise CheckpointError(msg)


def _differing(where: str, first: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    keys = sorted(key for key in first.keys() | other.keys() if first.get(key) != other.get(key))
    more = f", and {len(keys) - 1} more" if len(keys) > 1 else ""
    return [f"in {where}, {key} is {other.get(key, 'missing')}, not {first.get(key, 'missing')}{more}" for key in keys[:1]]


def _architecture(part: Part) -> dict[str, Any]:
    return {key: value for key, value in part.config.items() if key not in FREE}


def _shapes(part: Part) -> dict[str, list[int]]:
    return {name: list(layout.shape) for name, layout in part.layouts.items()}


def _training(part: Part) -> dict[str, Any]:
    return {"context": part.recipe.model.context, "language": part.recipe.model.language}


def _info(parts: Sequence[Part], shares: Sequence[float]) -> BestInfo:
    heard = {child for part in parts if part.info for child in part.info.train_children}
    datasets = sorted({part.info.dataset for part in parts if part.info})
    averaged = {part.name: share / sum(shares) for part, share in zip(parts, shares, strict=True)}
    recipe = as_dict(parts[0].recipe)
    return BestInfo(recipe, 0, None, {}, ", ".join(datasets), sorted(heard), averaged)


def _types(parts: Sequence[Part]) -> dict[str, Layout]:
    # float16 beside float32, as a Hub checkpoint beside a tuned one, becomes float32
    return {
        name: Layout(layout.shape, reduce(torch.promote_types, (part.layouts[name].dtype for part in parts)))
        for name, layout in parts[0].layouts.items()
    }


def _write_weights(path: Path, parts: Sequence[Part], shares: Sequence[float], progress: Progress) -> None:
    layouts = _types(parts)
    done = 0

    def mean(name: str) -> torch.Tensor:
        nonlocal done
        done += 1
        progress("averaging", done, len(layouts))
        return _mean(name, parts, shares).to(layouts[name].dtype)

    write_safetensors(path, layouts, mean)


def _mean(name: str, parts: Sequence[Part], shares: Sequence[float]) -> torch.Tensor:
    first = parts[0].weights.read(name)
    if not first.is_floating_point():
        return _common(name, first, parts)
    total = torch.zeros(first.shape, dtype=torch.float64)
    for part, share in zip(parts, shares, strict=True):
        total.add_(part.weights.read(name).double(), alpha=share)
    if not total.isfinite().all():
        broken = [part.name for part in parts if not part.weights.read(name).isfinite().all()]
        msg = f"{', '.join(broken)} holds numbers in {name} that are not finite; leave it out"
        raise CheckpointError(msg)
    return total / sum(shares)


def _common(name: str, first: torch.Tensor, parts: Sequence[Part]) -> torch.Tensor:
    for part in parts[1:]:
        if not torch.equal(first, part.weights.read(name)):
            msg = f"{part.name} can't be averaged with {parts[0].name}: {name} holds other whole numbers"
            raise CheckpointError(msg)
    return first


def _copy_rest(part: Part, out: Path, layouts: Mapping[str, Layout]) -> None:
    for path in part.home.iterdir():
        if path.suffix in {".json", ".txt"} and not path.name.endswith((".index.json", "kidspeech.json")):
            shutil.copyfile(path, out / path.name)
    largest = max(layouts.values(), key=lambda layout: torch.Size(layout.shape).numel())
    config = {key: value for key, value in part.config.items() if key != "torch_dtype"}  # its name before transformers 5
    config["dtype"] = str(largest.dtype).removeprefix("torch.")
    (out / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
