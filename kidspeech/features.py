"""
From a file to what a model hears: read, mix to mono, resample, log-mel.

The log-mel spectrogram is that of Whisper (Radford et al., 2022, section 2.2) as transformers' WhisperFeatureExtractor
computes it, without the silence that pads every clip to 30 s: padding a row with its own minimum gives the extractor's
output back, bit for bit in float32. A clip of 3.5 s is 56 kB that way instead of 960 kB.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import soundfile
import soxr
import torch
from numpy.typing import NDArray

from kidspeech import FEATURES_VERSION
from kidspeech.errors import AudioError

SAMPLE_RATE = 16_000  # Hz
N_FFT = 400  # samples: 25 ms
HOP = 160  # samples between frames: 10 ms, so 100 frames a second
FEWEST_FRAMES = 64  # computed, not kept: BLAS adds narrower products up in another order, and the last bit differs
NO_LENGTH = 2**63 - 1  # samples: libsndfile's SF_COUNT_MAX
BLOCK = 2**18  # samples read at once where the length is not known
HIGHEST = 1e6  # float files hold 1 at full scale, some 32,768; far above, what is squared below is no number any more
LOUDEST = 0.999  # of full scale: a sample from here on counts as clipped

Waveform = NDArray[np.float32]


@dataclass(frozen=True)
class Audio:
    """
    One decoded file.

    Attributes:
        samples: shape (n,), mono at SAMPLE_RATE.
        seconds: length.
        sampling_rate: of the file, in Hz.
        channels: of the file.
        peak: largest absolute sample, 1.0 is full scale.
        rms: root mean square of the samples.
        clipped: share of the samples at full scale.
    """

    samples: Waveform
    seconds: float
    sampling_rate: int
    channels: int
    peak: float
    rms: float
    clipped: float


def read_audio(content: bytes, *, max_seconds: float = math.inf) -> Audio:
    """
    Decode the bytes of a file of any format, rate, subtype and number of channels that libsndfile reads.

    Raises:
        AudioError: empty, not audio, no samples, cut off, samples that are not numbers or beyond
            any scale, or longer than *max_seconds*.
    """
    if not content:
        raise AudioError("the file is empty")
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            if file.frames == NO_LENGTH:
                return _audio(_streamed(content, max_seconds), file.samplerate, announced=0)
            _check_length(file.frames / file.samplerate, max_seconds)
            frames = file.read(dtype="float32", always_2d=True)
            return _audio(frames, file.samplerate, announced=file.frames)
    except soundfile.LibsndfileError as error:
        msg = f"not readable as audio: {error.error_string.rstrip('.')}"
        raise AudioError(msg) from error


class Featurizer(Protocol):
    """
    What a model family gives for reading audio: a picklable function from samples to features.
    """

    @property
    def settings(self) -> dict[str, Any]:
        """
        Everything the numbers depend on besides the audio.
        """

    @property
    def rows(self) -> int:
        """
        First dimension of what it returns.
        """

    @property
    def max_seconds(self) -> float:
        """
        What the model hears at most.
        """

    def __call__(self, samples: Waveform) -> NDArray[np.float32]:
        """
        Return features of shape (rows, n_frames) of mono samples at 16 kHz.
        """


@dataclass(frozen=True)
class LogMel:
    """
    Whisper's features: a waveform in, a trimmed log-mel spectrogram out. Small to pickle for worker processes.
    """

    filters: NDArray[np.float32] = field(repr=False)
    """Mel filter bank, shape (n_mels, N_FFT // 2 + 1)."""
    max_seconds: float = 30.0
    """What the model hears at most."""

    @property
    def rows(self) -> int:
        """
        Number of mel bands.
        """
        return int(self.filters.shape[0])

    @property
    def settings(self) -> dict[str, Any]:
        """
        Everything the numbers depend on besides the audio: a cache is keyed by it.
        """
        return {"kind": "log-mel", "version": FEATURES_VERSION, "n_mels": self.rows, "n_fft": N_FFT, "hop": HOP}

    def __call__(self, samples: Waveform) -> NDArray[np.float32]:
        """
        Return the log-mel spectrogram, shape (n_mels, n_frames), of n_frames_of(n) frames and at most max_seconds.
        """
        n_frames = min(n_frames_of(len(samples)), round(self.max_seconds * SAMPLE_RATE / HOP))
        padded = np.zeros(max(n_frames, FEWEST_FRAMES) * HOP, dtype=np.float32)
        padded[: len(samples)] = samples[: len(padded)]
        spectrum = torch.stft(torch.from_numpy(padded), N_FFT, HOP, window=self._window, return_complex=True)
        power = spectrum[:, :-1].abs() ** 2
        result: NDArray[np.float32] = log_mel(self._filters @ power)[:, :n_frames].numpy()
        return result

    @cached_property
    def _window(self) -> torch.Tensor:
        return torch.hann_window(N_FFT)

    @cached_property
    def _filters(self) -> torch.Tensor:
        return torch.from_numpy(self.filters)


def log_mel(power: torch.Tensor) -> torch.Tensor:
    """
    Return Whisper's features of mel power, shape (..., n_mels, frames) of both: the logarithm, cut off at eight decades
    under the loudest bin of a spectrogram, moved to about [-1, 1].
    """
    log = torch.clamp(power, min=1e-10).log10()
    log = torch.maximum(log, log.amax((-2, -1), keepdim=True) - 8.0)
    return (log + 4.0) / 4.0


def mel_power(features: torch.Tensor) -> torch.Tensor:
    """
    Return the mel power that *features* were made of by log_mel; what was cut off comes back as where it was cut.
    """
    return 10 ** (features * 4.0 - 4.0)


def n_frames_of(n_samples: int) -> int:
    """
    Return how many frames are kept: all that a sample reaches, and one of pure silence after them.

    Frame i sees the samples from HOP * i - N_FFT / 2 on, so ceil((n + 200) / 160) frames hold sound. The silent one makes
    the row's minimum the value of silence, which is 1e-10 or Whisper's clamp at eight decades under the loudest bin.
    """
    return math.ceil((n_samples + N_FFT // 2) / HOP) + 1


class _Stream(soundfile.SoundFile):
    """
    A file whose header does not say how long it is, as FLAC from a pipe: read to its end, where seeking fails.
    """

    def seekable(self) -> bool:
        """
        Return False: after each read SoundFile seeks otherwise.
        """
        return False


def _streamed(content: bytes, max_seconds: float) -> NDArray[np.float32]:
    blocks: list[NDArray[np.float32]] = []
    with _Stream(io.BytesIO(content)) as file:
        while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
            blocks.append(block)
            _check_length(sum(map(len, blocks)) / file.samplerate, max_seconds)
    return np.concatenate(blocks) if blocks else np.zeros((0, 1), np.float32)


def _check_length(seconds: float, max_seconds: float) -> None:
    if seconds > max_seconds:  # before decoding: the contest's longest clip has 22 minutes
        msg = f"{seconds:.1f} s long, and the model hears {max_seconds:g} s"
        raise AudioError(msg)


def _audio(frames: NDArray[np.float32], rate: int, *, announced: int) -> Audio:
    if not len(frames):
        raise AudioError("it has no samples")
    if len(frames) < announced:
        msg = f"cut off: {len(frames)} of {announced} samples"
        raise AudioError(msg)
    mono = frames[:, 0] if frames.shape[1] == 1 else frames.mean(axis=1)
    peak = max(float(mono.max()), -float(mono.min()))
    if not math.isfinite(peak):
        raise AudioError("it holds samples that are not numbers")
    if peak > HIGHEST:
        msg = f"its samples go to {peak:.0e}, and full scale is 1"
        raise AudioError(msg)
    samples = mono if rate == SAMPLE_RATE else soxr.resample(mono, rate, SAMPLE_RATE)
    rms = math.sqrt(float(np.square(mono, dtype=np.float64).mean()))
    clipped = float((np.abs(mono) >= LOUDEST).mean()) if peak >= LOUDEST else 0.0
    return Audio(np.ascontiguousarray(samples), len(mono) / rate, rate, frames.shape[1], peak, rms, clipped)
