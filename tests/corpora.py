"""
Corpora that tests make: tones in the contest's layout, and the sizes of a tiny random Whisper.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

TINY = (
    "{vocab_size: 1107, d_model: 16, encoder_layers: 1, decoder_layers: 1, encoder_attention_heads: 2, "
    "decoder_attention_heads: 2, encoder_ffn_dim: 32, decoder_ffn_dim: 32}"
)
START, NO_TIMESTAMPS, END = 1001, 1106, 1000  # in its vocabulary
WORDS = ("red", "blue", "cat", "dog", "one", "two", "sun", "moon")
BUCKETS = ("3-4", "5-7", "8-11")


Record = dict[str, object]


@dataclass(frozen=True)
class Corpus:
    """
    A manifest and its audio folders.
    """

    manifest: Path
    audio_dirs: list[Path]

    @property
    def records(self) -> list[Record]:
        return [json.loads(line) for line in self.manifest.read_text(encoding="utf-8").splitlines()]

    def rewrite(self, change: Callable[[list[Record]], list[Record]], name: str = "changed.jsonl") -> Corpus:
        """
        Return the corpus with *change* applied to its records, in a new manifest beside the old one.
        """
        path = self.manifest.with_name(name)
        path.write_text("".join(json.dumps(record) + "\n" for record in change(self.records)), encoding="utf-8")
        return Corpus(path, self.audio_dirs)

    def options(self) -> list[str]:
        """
        Return the command line's options for it.
        """
        return ["--manifest", str(self.manifest), *self.audio_options()]

    def audio_options(self) -> list[str]:
        """
        Return --audio-dir for each folder.
        """
        return [part for folder in self.audio_dirs for part in ("--audio-dir", str(folder))]


def tone(path: Path, *, seconds: float, pitch: float, rate: int = 16_000, channels: int = 1) -> None:
    """
    Write a tone whose pitch wanders, so that no two clips are alike.
    """
    time = np.arange(round(seconds * rate)) / rate
    wave = 0.3 * np.sin(2 * np.pi * pitch * time * (1 + 0.1 * time))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.column_stack([wave] * channels), rate)


def make_corpus(folder: Path, *, children: int = 9, clips: int = 3) -> Corpus:
    """
    Write *children* times *clips* tones into two folders, rates and channels mixed, and their manifest.
    """
    random = np.random.default_rng(0)
    lines = []
    for number in range(children * clips):
        child, name = number // clips, f"U_{number:03d}"
        path = folder / f"audio_{number % 2}" / f"{name}.flac"
        seconds = 0.4 + 0.1 * (number % 7)
        tone(path, seconds=seconds, pitch=200 + 30 * number, rate=(16_000, 22_050, 8_000)[number % 3], channels=1 + number % 2)
        content = path.read_bytes()
        lines.append(
            {
                "utterance_id": name,
                "child_id": f"C_{child}",
                "session_id": f"S_{child}",
                "audio_path": f"audio/{name}.flac",
                "audio_duration_sec": round(seconds, 2),
                "age_bucket": BUCKETS[child % 3],
                "md5_hash": hashlib.md5(content).hexdigest(),
                "filesize_bytes": len(content),
                "orthographic_text": " ".join(random.choice(WORDS, size=3)),
            }
        )
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return Corpus(manifest, [folder / "audio_0", folder / "audio_1"])
