"""
What the tests share: a corpus made anew for each, a cache of its own, no network, and a recipe that trains in seconds.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from corpora import TINY, Corpus, make_corpus

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # networks this small lose time to threads, and two test processes share two cores
os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub, which reads it once
SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(name="corpus")
def _corpus(tmp_path: Path) -> Corpus:
    return make_corpus(tmp_path / "corpus")


@pytest.fixture(name="cache", autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KIDSPEECH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(name="recipe_file")
def _recipe_file(tmp_path: Path) -> Path:
    """
    A recipe of a tiny random Whisper that trains in seconds.
    """
    path = tmp_path / "tiny.yaml"
    path.write_text(
        f"data: {{val_ratio: 0.34, split_tolerance: 0.2, workers: 1}}\nmodel: {{random: {TINY}}}\n"
        "train: {epochs: 2, effective_batch: 6 clips, learning_rate: 1e-3, warmup_steps: 2, log_every: 1, save_every: 2}\n",
        encoding="utf-8",
    )
    return path


@pytest.fixture(name="shared")
def _shared() -> Path:
    """
    Real children's speech and real weights, where this checkout has them beside it.
    """
    if not (SHARED / "kids").is_dir():
        pytest.skip("no ../shared with real speech and weights beside this checkout")
    return SHARED
