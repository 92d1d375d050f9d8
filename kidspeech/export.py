"""
A checkpoint in CTranslate2's format, for faster-whisper and whisper-ctranslate2 on CPUs.

CTranslate2 pads every clip to 30 s and has its own decoder; with float32 weights it gives the words that `kidspeech predict`
gives with the padded context. int8 is a quarter of the size and rounds.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from kidspeech.checkpoint import recipe_of
from kidspeech.errors import CheckpointError, InputError, writing
from kidspeech.models import create_model

QUANTIZATIONS = ("float32", "float16", "int8")


def export_ctranslate2(checkpoint: str, out: Path, quantization: str = "float32") -> None:
    """
    Write *checkpoint* as a folder that faster_whisper.WhisperModel(folder) opens.

    Args:
        checkpoint: best/ of a run, any Whisper folder, or a Hub id.
        out: folder to write; must not exist.
        quantization: of the weights, one of QUANTIZATIONS.

    Raises:
        CheckpointError: the checkpoint can't be used.
        InputError: ctranslate2 is not installed, *out* exists, or there is no such quantization.
        StorageError: *out* can't be written.
    """
    if importlib.util.find_spec("ctranslate2") is None:
        raise InputError("ctranslate2 is not installed: pip install 'kidspeech[ctranslate2]'")
    if quantization not in QUANTIZATIONS:
        msg = f"no quantization {quantization!r}; there are {', '.join(QUANTIZATIONS)}"
        raise InputError(msg)
    if out.exists():
        msg = f"{out} exists; give another --out"
        raise InputError(msg)
    processor = create_model(recipe_of(checkpoint)[0].model).processor  # type: ignore[attr-defined]  # Whisper's, the one family
    aside = out.with_name(f"{out.name}.tmp")
    with writing(out):
        shutil.rmtree(aside, ignore_errors=True)
        _convert(checkpoint, aside, quantization)
        processor.tokenizer.save_pretrained(aside)
        processor.feature_extractor.save_pretrained(aside)  # faster-whisper reads the number of mel bands from it
        aside.rename(out)


def _convert(checkpoint: str, out: Path, quantization: str) -> None:
    from ctranslate2.converters import TransformersConverter

    try:
        TransformersConverter(checkpoint).convert(str(out), quantization=quantization)
    except (ValueError, RuntimeError) as error:
        msg = f"ctranslate2 can't convert {checkpoint}: {error}"
        raise CheckpointError(msg) from error
