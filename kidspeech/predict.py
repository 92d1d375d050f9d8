"""
From a checkpoint and a manifest to predictions.jsonl.

What is finished is kept as it comes, so a killed run goes on where it was, to the same bytes. One bad file never ends a run.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from kidspeech.checkpoint import BestInfo, recipe_of
from kidspeech.clips import Skipped, locate
from kidspeech.config import Recipe, as_dict, override
from kidspeech.errors import ManifestError, writing
from kidspeech.features import read_audio
from kidspeech.folders import locked
from kidspeech.guards import NAMES
from kidspeech.manifest import REQUIRED, Utterance, read_jsonl, read_manifest, write_jsonl
from kidspeech.models import create_model
from kidspeech.progress import Progress, silent
from kidspeech.reading import half_features
from kidspeech.transcribe import Made, Wanted, in_pieces, is_padded, prepared, transcribe


@dataclass(frozen=True)
class Predicted:
    """
    What came of a prediction run.

    Attributes:
        out: file of predictions, one line an utterance, in the manifest's order or the one asked for.
        utterances: how many.
        skipped: those whose audio can't be used; their prediction is the empty string.
        context: "trimmed" or "padded", as decoded.
        guards: on how many clips each of kidspeech.guards.NAMES acted.
        notes: what a reader of a WER over them must know.
    """

    out: Path
    utterances: int
    skipped: list[Skipped]
    context: str
    guards: dict[str, int]
    notes: list[str]


def predict(
    checkpoint: str,
    manifests: Sequence[Path],
    audio_dirs: Sequence[Path],
    out: Path,
    *,
    overrides: Sequence[str] = (),
    order: Path | None = None,
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
        order: JSONL whose utterance_ids give the lines of *out* and their order; the manifests' where not given.
        progress: told of the work.

    Raises:
        CheckpointError, ManifestError, RecipeError: the input can't be used.
        BusyError: another process writes *out*.
        StorageError: the disk is full; what is finished is kept.
    """
    recipe, info = recipe_of(checkpoint)
    recipe = override(recipe, overrides)
    utterances = read_manifest(manifests, required=REQUIRED)
    names = _names(order, utterances)
    clips, skipped = locate(utterances, audio_dirs or [path.parent for path in manifests])
    wanted = [(utterance, clips[utterance.utterance_id]) for utterance in utterances if utterance.utterance_id in clips]
    with locked(out.parent / f".{out.name}.lock", f"the predictions {out}"):
        part = out.with_name(f".{out.name}.{_key(checkpoint, recipe, wanted)}.part")
        made = _finish(part, wanted, recipe, progress)
        skipped += [
            Skipped(utterance.utterance_id, clip.path, problem)
            for utterance, clip in wanted
            if (problem := made[utterance.utterance_id].problem) is not None
        ]
        write_jsonl(out, (_line(name, made) for name in names))
        write_jsonl(out.with_name(f"{out.name}.skipped.jsonl"), map(asdict, skipped))
        part.unlink(missing_ok=True)
    counts = Counter(guard for one in made.values() for guard in one.guards)
    context = "padded" if is_padded(recipe) else "trimmed"
    guards = {name: counts[name] for name in NAMES}
    return Predicted(out, len(names), skipped, context, guards, _notes(recipe, info, utterances))


def listen(checkpoint: str, contents: Sequence[bytes], *, overrides: Sequence[str] = ()) -> list[str]:
    """
    Return what is said in each of *contents*, audio files as bytes: a quick listen, without a manifest.

    Raises:
        CheckpointError, RecipeError: the checkpoint or a setting can't be used.
        AudioError: not audio, or longer than the model hears.
    """
    recipe = override(recipe_of(checkpoint)[0], overrides)
    model = create_model(recipe.model)
    audios = [read_audio(content, max_seconds=model.featurizer.max_seconds) for content in contents]
    rows = [{"input_features": half_features(model.featurizer, audio.samples), "seconds": audio.seconds} for audio in audios]
    prepared(model)
    return [transcript.text if transcript else "" for row in rows for transcript in in_pieces([row], model, recipe)]


def _names(order: Path | None, utterances: Sequence[Utterance]) -> list[str]:
    known = {utterance.utterance_id for utterance in utterances}
    if order is None:
        return [utterance.utterance_id for utterance in utterances]
    problems: list[str] = []
    names = [str(record.get("utterance_id")) for _, record in read_jsonl(order, problems)]
    problems += [f"{name} is in no manifest" for name in names if name not in known]
    problems += [f"{name} stands {count} times" for name, count in Counter(names).items() if count > 1]
    if problems:
        msg = f"{order} can't order the predictions, with {len(problems)} problems like: {problems[0]}"
        raise ManifestError(msg)
    return names


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


def _key(checkpoint: str, recipe: Recipe, wanted: Sequence[Wanted]) -> str:
    weights = sorted(
        (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in Path(checkpoint).glob("*.safetensors")
    )
    settings = [as_dict(recipe)["decode"], as_dict(recipe)["data"], checkpoint, weights]
    clips = [(utterance.as_line(), clip.path, clip.size, clip.mtime_ns) for utterance, clip in wanted]
    return hashlib.sha256(json.dumps([settings, clips]).encode()).hexdigest()[:12]


def _finish(part: Path, wanted: Sequence[Wanted], recipe: Recipe, progress: Progress) -> dict[str, Made]:
    made = _read_part(part)
    with writing(part):
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("a", encoding="utf-8") as lines:
            for batch in transcribe(wanted, create_model(recipe.model), recipe, have=set(made)):
                lines.writelines(json.dumps(one.as_line()) + "\n" for one in batch)
                lines.flush()
                made |= {one.utterance_id: one for one in batch}
                progress("transcribing", len(made), len(wanted))
    return made


def _read_part(part: Path) -> dict[str, Made]:
    if not part.is_file():
        return {}
    lines = part.read_text(encoding="utf-8").split("\n")[:-1]  # what follows the last line break was torn off by a kill
    part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    records = [json.loads(line) for line in lines]
    return {record["utterance_id"]: Made(**record | {"guards": tuple(record["guards"])}) for record in records}


def _line(name: str, made: Mapping[str, Made]) -> dict[str, str]:
    return {"utterance_id": name, "orthographic_text": made[name].text if name in made else ""}
