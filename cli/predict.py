"""
kidspeech predict: a checkpoint and manifests to predictions.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from kidspeech.cli import output
from kidspeech.cli.options import AudioDirOpt, CacheOpt


def predict(
    checkpoint: Annotated[str, Argument(help="best/ of a run, any Whisper folder, or a Hub id.")],
    manifest: Annotated[
        list[str], Argument(metavar="MANIFEST... [section.key=value]...", help="JSONL manifests, then settings.")
    ],
    out: Annotated[Path, Option("--out", help="The predictions file to write.")] = Path("predictions.jsonl"),
    audio_dir: AudioDirOpt = None,
    cache_dir: CacheOpt = None,
) -> None:
    """
    Transcribe the utterances of manifests. The same command again goes on where it was cut off.

    Audio that can't be used is predicted as the empty string and listed; then the exit code is 1.

    **Examples**

        kidspeech predict RUN/best DATA/validation.jsonl --audio-dir audio_0 --audio-dir audio_1 --out predictions.jsonl

        kidspeech predict openai/whisper-small.en test.jsonl --audio-dir audio decode.num_beams=5
    """
    from kidspeech.predict import predict as transcribe

    overrides = [entry for entry in manifest if "=" in entry and not Path(entry).is_file()]
    manifests = [Path(entry) for entry in manifest if entry not in overrides]
    with output.progress() as progress:
        result = transcribe(
            checkpoint, manifests, audio_dir or [], out, overrides=overrides, cache=cache_dir, progress=progress
        )
    for note in result.notes:
        output.note(f"note: {note}")
    output.note(f"{result.utterances} utterances, {result.context} context")
    output.done("predictions", out, shlex.join(["kidspeech", "score", str(out), *map(str, manifests)]))
    if result.skipped:
        output.note(f"{len(result.skipped)} clips could not be used and are predicted as empty: {out}.skipped.jsonl")
        raise typer.Exit(1)
