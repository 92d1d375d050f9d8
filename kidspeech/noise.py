"""
Noise to train in: a folder of recordings, as features made once.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from kidspeech.cache import FeatureCache
from kidspeech.clips import Clip
from kidspeech.errors import RecipeError
from kidspeech.features import Featurizer, LogMel
from kidspeech.progress import Progress, silent

SUFFIXES = {".aif", ".aiff", ".flac", ".mp3", ".ogg", ".opus", ".wav"}  # of what libsndfile reads; texts lie beside noise too
LONGEST = 3600.0  # seconds of one recording: its spectrum takes 0.6 GB while it is made


def read_noise(folder: Path, featurizer: Featurizer, cache: Path, progress: Progress = silent) -> torch.Tensor:
    """
    Return the log-mel features of all recordings in *folder* and below, one after the other in the order of their paths.

    They are kept in *cache* apart from those of speech, which knows recordings over 30 s as unusable. An hour takes 58 MB.

    Returns:
        float16, shape (n_mels, frames), without the frame of silence that ends each recording.

    Raises:
        RecipeError: there is no such folder, no recording in it, or one that can't be used; or the model hears no log-mel.
        BusyError: another process computes into this cache.
        StorageError: the disk is full.
    """
    if not isinstance(featurizer, LogMel):
        raise RecipeError("augment.noise: noise is mixed into log-mel features, and this model takes others; leave it out")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        msg = f"augment.noise: {folder} is no folder with recordings ({', '.join(sorted(SUFFIXES))})"
        raise RecipeError(msg)
    clips = [Clip.of(path.resolve()) for path in paths]
    rows = FeatureCache(cache / "noise", replace(featurizer, max_seconds=LONGEST)).rows(clips, progress, os.cpu_count() or 1)
    for row in rows:
        if row.small["problem"] is not None:
            msg = f"augment.noise: {row.small['path']} can't be used: {row.small['problem']}; mend it, or take it out"
            raise RecipeError(msg)
    return torch.from_numpy(np.concatenate([row.features.reshape(featurizer.rows, -1)[:, :-1] for row in rows], axis=1))
