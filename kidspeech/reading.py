"""
One audio file, read once: what it holds, its features, and why it can't be used if it can't.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from kidspeech.clips import Clip
from kidspeech.config import Data
from kidspeech.errors import AudioError
from kidspeech.features import Featurizer, Waveform, read_audio
from kidspeech.manifest import Utterance

UNREAD = "can't be read"  # how a problem begins that may be gone next time: a disk not mounted, a file in writing
KILLS = "kills the process that reads it, also alone; touch the file to have it tried again"


def compute_row(clip: Clip, featurizer: Featurizer) -> dict[str, Any]:
    """
    Read one file, once, and return its row of kidspeech.shards.SCHEMA; a file that can't be used gets its problem in words.
    """
    try:
        content = _content(clip)
    except OSError as error:
        return problem_row(clip, f"{UNREAD}: {error.strerror}")
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    try:
        audio = read_audio(content, max_seconds=featurizer.max_seconds)
    except AudioError as error:
        return problem_row(clip, str(error)) | {"md5": md5}
    features = half_features(featurizer, audio.samples)
    row = {"path": clip.path, "size": clip.size, "mtime_ns": clip.mtime_ns, "md5": md5, "problem": None}
    row |= {name: getattr(audio, name) for name in ("seconds", "sampling_rate", "channels", "peak", "rms", "clipped")}
    return row | {"n_frames": features.shape[1], "input_features": features.ravel()}


def half_features(featurizer: Featurizer, samples: Waveform) -> NDArray[np.float16]:
    """
    Return the features of *samples* as they are kept, shape (rows, n_frames): rounded as numpy does, in a tenth of its time.
    """
    rounded: NDArray[np.float16] = torch.from_numpy(featurizer(samples)).half().numpy()
    return rounded


def problem_row(clip: Clip, problem: str) -> dict[str, Any]:
    """
    Return the row of a clip that can't be used.
    """
    return {"path": clip.path, "size": clip.size, "mtime_ns": clip.mtime_ns, "problem": problem}


def _content(clip: Clip) -> bytes:
    # it was a regular file when it was looked up; opening what is now a pipe must not wait for a writer
    with os.fdopen(os.open(clip.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb") as file:
        status = os.fstat(file.fileno())
        if (status.st_size, status.st_mtime_ns) != (clip.size, clip.mtime_ns):
            raise OSError(errno.ESTALE, "it changed during the run")
        return file.read()


def audio_problem(utterance: Utterance, audio: Mapping[str, Any], data: Data) -> str | None:
    """
    Return why the audio of *utterance*, read into the row *audio*, can't be used; None where it can.
    """
    if audio["problem"] is not None:
        return f"audio {audio['problem']}"
    if data.verify and utterance.filesize_bytes not in (None, audio["size"]):
        return f"size mismatch: {audio['size']} bytes, and the manifest says {utterance.filesize_bytes}"
    if data.verify and utterance.md5_hash and utterance.md5_hash.lower() != audio["md5"]:
        return f"md5 mismatch: {audio['md5']}, and the manifest says {utterance.md5_hash}"
    if audio["seconds"] < data.min_seconds:
        return f"too short: {audio['seconds']:.3f} s, under data.min_seconds"
    if audio["seconds"] > data.max_seconds:
        return f"too long: {audio['seconds']:.1f} s, over data.max_seconds"
    return None


def seconds_of(clip: Clip) -> float:
    """
    Return the length that a file's header announces, without decoding it; 0 where it can't be read.
    """
    try:
        return float(soundfile.info(clip.path).duration)
    except (soundfile.LibsndfileError, OSError):
        return 0.0
