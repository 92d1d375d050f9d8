"""
The corpus of the demo, the script that made it, and a tokenizer that needs no download.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HOME = Path(__file__).with_name("corpus")


@dataclass(frozen=True, slots=True)
class Corpus:
    """
    Where a corpus lies: its manifest, and the folders of its audio.
    """

    manifest: Path
    audio_dirs: list[Path]


def corpus() -> Corpus:
    """
    Return the corpus that ships with kidspeech: made-up children, each with a voice of their own.
    """
    return Corpus(manifest=HOME / "manifest.jsonl", audio_dirs=sorted(HOME.glob("audio_*")))
