"""
The contest's text normalisation: openai-whisper's EnglishTextNormalizer with four spellings put right.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache, lru_cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from kidspeech.errors import ScoreError

# The contest scores with transformers' class and its own spelling table. openai-whisper's english.json differs from that
# table in these entries and no others: a left-over HTML tag, two words that slid by a line, and one filler missing.
CORRECTED = {"archaeology": "archeology", "pummelled": "pummeled", "pummelling": "pummeling", "mm": "hmm"}


@lru_cache(maxsize=1 << 16)  # a text costs 0.1 ms, and each validation normalises the same references anew
def normalise(text: str) -> str:
    """
    Bring *text* into the form in which the contest compares words.

    Raises:
        ScoreError: the text holds a number beyond the 4,300 digits that Python reads; the contest's scorer stops there too.
    """
    try:
        return _normaliser()(text)
    except AssertionError as error:
        msg = f"can't normalise the text {text[:40]!r}…: it holds a number too long to read"
        raise ScoreError(msg) from error


@cache
def _normaliser() -> Callable[[str], str]:
    normaliser = _whisper_normalizers().EnglishTextNormalizer()
    normaliser.standardize_spellings.mapping.update(CORRECTED)
    return normaliser  # type: ignore[no-any-return]


def _whisper_normalizers() -> ModuleType:
    # `import whisper.normalizers` would run whisper/__init__.py, which imports torch and numba: two to ten seconds for
    # two small text modules. So they are loaded from their place, under a name of our own.
    whisper = find_spec("whisper")
    if whisper is None or whisper.origin is None:
        msg = (
            "openai-whisper is not installed, and no other normaliser gives the contest's figures: pip install openai-whisper"
        )
        raise ImportError(msg)
    folder = Path(whisper.origin).parent / "normalizers"
    spec = spec_from_file_location("kidspeech_whisper_normalizers", folder / "__init__.py")
    if spec is None or spec.loader is None:
        msg = f"can't load openai-whisper's normalisers from {folder}"
        raise ImportError(msg)
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # its own relative imports look it up there
    spec.loader.exec_module(module)
    return module
