"""
kidspeech export: a checkpoint in another program's format.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from kidspeech.cli import output
from kidspeech.errors import InputError


def export(
    checkpoint: Annotated[str, Argument(help="best/ of a run, any Whisper folder, or a Hub id.")],
    out: Annotated[Path, Option("--out", help="The folder to write.")],
    to: Annotated[str, Option("--to", help="The format; there is ctranslate2, which faster-whisper reads.")] = "ctranslate2",
    quantization: Annotated[str, Option(help="Of the weights: float32, float16 or int8.")] = "float32",
) -> None:
    """
    Write a checkpoint for faster-whisper, which is quick on CPUs. Needs `pip install "kidspeech[ctranslate2]"`.

    **Examples**

        kidspeech export RUN/best --to ctranslate2 --out RUN/ct2

        kidspeech export RUN/best --to ctranslate2 --out RUN/ct2-int8 --quantization int8
    """
    from kidspeech.export import export_ctranslate2

    if to != "ctranslate2":
        msg = f"no format {to!r}; there is ctranslate2"
        raise InputError(msg)
    export_ctranslate2(checkpoint, out, quantization)
    output.done("ctranslate2", out, f"python -c \"from faster_whisper import WhisperModel; WhisperModel('{out}')\"")
