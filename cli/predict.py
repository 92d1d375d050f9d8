"""
kidspeech predict: a checkpoint and manifests to predictions, or audio files to text on stdout.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from kidspeech.cli import output
from kidspeech.cli.options import AudioDirOpt
from kidspeech.errors import AudioError

if TYPE_CHECKING:
    from kidspeech.predict import Predicted

SOUND = {".aif", ".aiff", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".wav"}


def predict(
    checkpoint: Annotated[str, Argument(help="best/ of a run, any Whisper folder, or a Hub id.")],
    inputs: Annotated[
        list[str],
        Argument(
            metavar="MANIFEST...|AUDIO...|- [section.key=value]...",
            help="JSONL manifests; or audio files, or - for audio on stdin, whose text is printed. Then settings.",
        ),
    ],
    out: Annotated[Path, Option("--out", help="The predictions file to write.")] = Path("predictions.jsonl"),
    audio_dir: AudioDirOpt = None,
    order: Annotated[
        Path | None, Option(help="JSONL whose utterance_ids give the lines and their order, like submission_format.jsonl.")
    ] = None,
) -> None:
    """
    Transcribe the utterances of manifests. The same command again goes on where it was cut off.

    Audio that can't be used is predicted as the empty string and listed; then the exit code is 1.

    **Examples**

        kidspeech predict RUN/best DATA/validation.jsonl --audio-dir audio_0 --audio-dir audio_1 --out predictions.jsonl

        kidspeech predict openai/whisper-small.en test.jsonl --audio-dir audio decode.num_beams=5

        kidspeech predict RUN/best hello.wav

        arecord -f S16_LE -r 16000 -d 5 | kidspeech predict RUN/best -
    """
    overrides = [entry for entry in inputs if "=" in entry and not Path(entry).is_file()]
    files = [entry for entry in inputs if entry not in overrides]
    if any(entry == "-" or Path(entry).suffix.lower() in SOUND for entry in files):
        _listen(checkpoint, files, overrides)
        return
    from kidspeech.predict import predict as transcribe

    manifests = [Path(entry) for entry in files]
    with output.progress() as progress:
        result = transcribe(checkpoint, manifests, audio_dir or [], out, overrides=overrides, order=order, progress=progress)
    _tell(result)
    output.done("predictions", out, shlex.join(["kidspeech", "score", str(out), *map(str, manifests)]))
    if result.skipped:
        output.note(f"{len(result.skipped)} clips could not be used and are predicted as empty: {out}.skipped.jsonl")
        raise typer.Exit(1)


def _tell(result: Predicted) -> None:
    for note in result.notes:
        output.note(f"note: {note}")
    output.note(f"{result.utterances} utterances, {result.context} context")
    acted = ", ".join(f"{name} {count}" for name, count in result.guards.items())
    output.note(f"guards, clips they acted on: {acted}")


def _listen(checkpoint: str, files: Sequence[str], overrides: Sequence[str]) -> None:
    from kidspeech.predict import listen

    for entry in files:
        try:
            content = sys.stdin.buffer.read() if entry == "-" else Path(entry).read_bytes()
            (text,) = listen(checkpoint, [content], overrides=overrides)
        except OSError as error:
            msg = f"can't read {entry}: {error.strerror}; give JSONL manifests, or audio files"
            raise AudioError(msg) from error
        except AudioError as error:
            msg = f"{entry}: {error}"
            raise AudioError(msg) from error
        output.data(text if len(files) == 1 else f"{entry}: {text}")
