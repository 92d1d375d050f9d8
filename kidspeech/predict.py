"""
From a checkpoint and a manifest to predictions.jsonl.

The same hops as in training: read_manifest, the feature cache, Collator, generate. The context follows the checkpoint's
training. What is finished is kept as it comes, so a killed run goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kidspeech.arrow_folder import Example
from kidspeech.batching import pack
from kidspeech.checkpoint import BestInfo, recipe_of
from kidspeech.clips import Skipped, locate
from kidspeech.collate import Collator
from kidspeech.config import Recipe, as_dict, override
from kidspeech.errors import writing
from kidspeech.examples import featurize
from kidspeech.folders import default_cache, locked
from kidspeech.loader import FRAMES_PER_SECOND
from kidspeech.manifest import REQUIRED, Utterance, read_manifest, write_jsonl
from kidspeech.models import BaseASRModel, create_model
from kidspeech.progress import Progress, silent


@dataclass(frozen=True)
class Predicted:
    """
    What came of a prediction run.

    Attributes:
        out: file of predictions, one line an utterance, in the manifest's order.
        utterances: how many.
        skipped: those whose audio can't be used; their prediction is the empty string.
        context: "trimmed" or "padded", as decoded.
        notes: what a reader of a WER over them must know.
    """

    out: Path
    utterances: int
    skipped: list[Skipped]
    context: str
    notes: list[str]


def predict(
    checkpoint: str,
    manifests: Sequence[Path],
    audio_dirs: Sequence[Path],
    out: Path,
    *,
    overrides: Sequence[str] = (),
    cache: Path | None = None,
    progress: Progress = silent,
) -> Predicted:
    """
    Transcribe the utterances of *manifests* with *checkpoint*.

    Args:
        checkpoint: best/ of a run, any Whisper folder, or a Hub id.
        manifests: JSONL files, read as one; transcripts are not needed.
        audio_dirs: folders to look for audio in, by file name; none for the folders of the manifests.
        out: file to write; *out* with .skipped.jsonl beside it lists audio that could not be used.
        overrides: settings of the sections data and decode, laid over those of the checkpoint's recipe.
        cache: feature cache; default_cache() where not given.
        progress: told of the work.

    Raises:
        CheckpointError, ManifestError, RecipeError: the input can't be used.
        BusyError: another process writes *out*.
        StorageError: the disk is full; what is finished is kept.
    """
    recipe, info = recipe_of(checkpoint)
    recipe = override(recipe, overrides)
    padded = _padded(recipe)
    utterances = read_manifest(manifests, required=REQUIRED)
    clips, skipped = locate(utterances, audio_dirs or [path.parent for path in manifests])
    model = create_model(recipe.model)
    with locked(out.parent / f".{out.name}.lock", f"the predictions {out}"):
        examples, unusable = featurize(
            utterances, clips, model, recipe.data, cache or default_cache(), progress, labelled=False
        )
        part = out.with_name(f".{out.name}.{_key(checkpoint, recipe, utterances)}.part")
        texts = _finish(part, examples, model, recipe, padded=padded, progress=progress)
        skipped += unusable
        texts |= {entry.utterance_id: "" for entry in skipped}
        write_jsonl(out, (_line(utterance, texts) for utterance in utterances))
        write_jsonl(out.with_name(f"{out.name}.skipped.jsonl"), map(asdict, skipped))
        part.unlink(missing_ok=True)
    return Predicted(out, len(utterances), skipped, "padded" if padded else "trimmed", _notes(recipe, info, utterances))


def _padded(recipe: Recipe) -> bool:
    """
    Return whether to decode with the whole window: auto does so for every checkpoint that was not trained on less.
    """
    wanted = recipe.model.context if recipe.decode.context == "auto" else recipe.decode.context
    return wanted == "padded"


def _notes(recipe: Recipe, info: BestInfo | None, utterances: Sequence[Utterance]) -> list[str]:
    notes = []
    if recipe.decode.context == "trimmed" and recipe.model.context == "padded":
        notes.append(
            "decoded trimmed a checkpoint that was trained padded, which can break it: small.en went from 2.8 to 79.7"
        )
    known = set(info.train_children) if info else set()
    if heard := sum(utterance.child_id in known for utterance in utterances):
        notes.append(
            f"{heard} of {len(utterances)} utterances are by children this checkpoint was trained on: a WER says nothing"
        )
    return notes


def _key(checkpoint: str, recipe: Recipe, utterances: Sequence[Utterance]) -> str:
    weights = sorted(
        (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in Path(checkpoint).glob("*.safetensors")
    )
    settings = json.dumps([as_dict(recipe)["decode"], checkpoint, weights])
    return hashlib.sha256(f"{settings} {[u.utterance_id for u in utterances]}".encode()).hexdigest()[:12]


def _finish(
    part: Path, examples: Sequence[Example], model: BaseASRModel, recipe: Recipe, *, padded: bool, progress: Progress
) -> dict[str, str]:
    texts = _read_part(part)
    waiting = [example for example in examples if example.utterance.utterance_id not in texts]
    done = len(examples) - len(waiting)
    with writing(part):
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("a", encoding="utf-8") as lines:
            for made in _decode(waiting, model, recipe, padded=padded) if waiting else ():
                lines.writelines(json.dumps([name, text]) + "\n" for name, text in made.items())
                lines.flush()
                texts |= made
                done += len(made)
                progress("transcribing", done, len(examples))
    return texts


def _read_part(part: Path) -> dict[str, str]:
    if not part.is_file():
        return {}
    lines = part.read_text(encoding="utf-8").split("\n")[:-1]  # what follows the last line break was torn off by a kill
    part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return dict(json.loads(line) for line in lines)


def _decode(examples: Sequence[Example], model: BaseASRModel, recipe: Recipe, *, padded: bool) -> Iterator[dict[str, str]]:
    model.load()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.network.to(device).eval()
    collate = Collator(model.featurizer.rows, lambda longest: model.frames(longest, padded=padded))
    frames = np.array([example.row.small["n_frames"] for example in examples])
    order = np.argsort(-frames, kind="stable")  # longest first: the batch that may not fit in memory comes at once
    half = torch.autocast("cuda", torch.float16) if device.type == "cuda" else nullcontext()
    for clips in pack(order, lambda clips: _seconds(frames[clips], model, padded=padded), recipe.decode.batch_seconds):
        chosen = [examples[clip] for clip in clips]
        batch = collate([_collatable(example) for example in chosen])
        batch["input_features"] = batch["input_features"].to(device)
        with half:
            texts = model.generate(batch, recipe.decode)
        yield {example.utterance.utterance_id: text for example, text in zip(chosen, texts, strict=True)}


def _seconds(frames: np.ndarray[Any, np.dtype[np.int64]], model: BaseASRModel, *, padded: bool) -> float:
    return len(frames) * model.frames(int(frames.max()), padded=padded) / FRAMES_PER_SECOND


def _collatable(example: Example) -> dict[str, Any]:
    return {"input_features": example.row.features, "seconds": example.row.small["seconds"]}


def _line(utterance: Utterance, texts: Mapping[str, str]) -> dict[str, str]:
    return {"utterance_id": utterance.utterance_id, "orthographic_text": texts[utterance.utterance_id]}
