"""
kidspeech prepare: manifests and audio folders to a dataset.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from kidspeech.cli import output
from kidspeech.cli.options import AudioDirOpt, CacheOpt, OverridesArg, RecipeArg

if TYPE_CHECKING:
    from kidspeech.dataset import Prepared


def prepare(
    recipe: RecipeArg,
    out: Annotated[str, Option("--out", help="The dataset folder to make, or an s3:// URL.")],
    overrides: OverridesArg = None,
    manifest: Annotated[
        list[Path] | None,
        Option("--manifest", help="A JSONL manifest; repeat it for more. Not needed where the recipe names corpora."),
    ] = None,
    audio_dir: AudioDirOpt = None,
    cache_dir: CacheOpt = None,
) -> None:
    """
    Make a dataset of log-mel features and labels, split by child.

    Audio is read once: another split, limit or tokenizer takes the features from the cache.

    **Examples**

        kidspeech prepare whisper-small --manifest train.jsonl --audio-dir audio_0 --audio-dir audio_1 --out DATA

        kidspeech prepare whisper-small --manifest train.jsonl --audio-dir audio --out DATA data.val_ratio=0.2 data.seed=1

        kidspeech prepare whisper-small --manifest train.jsonl --audio-dir audio --out s3://bucket/data

        kidspeech prepare two-corpora.yaml --out DATA data.shared_children=separate
    """
    from kidspeech.config import load_recipe
    from kidspeech.dataset import build_dataset

    settings = load_recipe(recipe, overrides or [])
    with output.progress() as progress:
        prepared = build_dataset(settings, manifest or [], audio_dir or [], out, cache=cache_dir, progress=progress)
    _show(prepared)
    again = shlex.join(["kidspeech", "train", recipe, "--data", out, "--out", "RUN", *_of_model(overrides or [])])
    output.done("dataset", out, again)


def _show(prepared: Prepared) -> None:
    sides = [
        [name, *(f"{value:,.2f}".rstrip("0").rstrip(".") for value in counts.values())]
        for name, counts in prepared.sides.items()
    ]
    output.table("", ["", "utterances", "hours", "children"], sides, to=output.ERR)
    output.note("validation share: " + ", ".join(f"{name} {share:.1%}" for name, share in prepared.shares.items()))
    for reason, count in prepared.skipped.items():
        output.note(f"skipped: {count} × {reason} (see skipped.jsonl)")
    for note in prepared.notes:
        output.note(f"note: {note}")


def _of_model(overrides: list[str]) -> list[str]:
    return [override for override in overrides if override.startswith("model.")]
