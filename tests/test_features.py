"""
Features: Whisper's own to the bit, whatever the file.
"""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import transformers
from hypothesis import given, settings, strategies

from kidspeech.errors import AudioError
from kidspeech.features import SAMPLE_RATE, LogMel, Waveform, n_frames_of, read_audio

EXTRACTOR = transformers.WhisperFeatureExtractor()
LOG_MEL = LogMel(np.ascontiguousarray(EXTRACTOR.mel_filters.T, dtype=np.float32))


def padded(samples: Waveform) -> np.ndarray:
    """
    Return our trimmed features, padded with their minimum to 30 s.
    """
    features = LOG_MEL(samples)
    full = np.full((features.shape[0], 3000), features.min())
    full[:, : features.shape[1]] = features
    return full


def extracted(samples: Waveform) -> np.ndarray:
    """
    Return what transformers' extractor makes.
    """
    result: np.ndarray = EXTRACTOR(samples, sampling_rate=SAMPLE_RATE, return_tensors="np").input_features[0]
    return result


def encoded(samples: np.ndarray, rate: int = SAMPLE_RATE, kind: str = "FLAC", subtype: str | None = None) -> bytes:
    """
    Return *samples* as the bytes of a file.
    """
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


@pytest.mark.unit
@settings(deadline=None, max_examples=80)
@given(
    strategies.integers(1, 40_000) | strategies.integers(479_000, 480_000),
    strategies.floats(1e-4, 1),
    strategies.integers(0, 9),
)
def test_trimmed_features_padded_with_silence_are_whispers_to_the_bit(n_samples: int, loudness: float, seed: int) -> None:
    """
    For clips of any length and loudness, in float32.
    """
    samples = (np.random.default_rng(seed).standard_normal(n_samples) * loudness).astype(np.float32)

    assert np.array_equal(padded(samples), extracted(samples))


@pytest.mark.unit
@pytest.mark.parametrize("n_samples", [1, 159, 160, 161, 480, 16_000])
def test_silence_and_the_shortest_clips_agree_too(n_samples: int) -> None:
    """
    Nothing but zeros has no loudest bin to measure from.
    """
    samples = np.zeros(n_samples, dtype=np.float32)

    assert np.array_equal(padded(samples), extracted(samples))
    assert LOG_MEL(samples).shape == (80, n_frames_of(n_samples))


@pytest.mark.integration
def test_children_agree_to_the_bit_and_lose_little_in_float16(shared: Path) -> None:
    """
    On real clips: float32 equal, float16 within 5e-4 of the extractor's range of about 2.
    """
    for path in sorted((shared / "kids" / "audio_1").iterdir())[::8]:
        samples = read_audio(path.read_bytes()).samples
        assert np.array_equal(padded(samples), extracted(samples))
        features = LOG_MEL(samples)
        assert np.abs(features.astype(np.float16) - features).max() <= 5e-4


@pytest.mark.unit
@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("channels", [1, 2, 8])
def test_any_rate_and_number_of_channels_gives_the_same_tone(rate: int, channels: int) -> None:
    """
    A tone of 440 Hz stays one of 440 Hz and half a second.
    """
    wave = np.sin(2 * np.pi * 440 * np.arange(rate // 2) / rate)
    audio = read_audio(encoded(np.column_stack([wave] * channels), rate))
    spectrum = np.abs(np.fft.rfft(audio.samples))

    assert (audio.sampling_rate, audio.channels, audio.seconds) == (rate, channels, pytest.approx(0.5, abs=1e-3))
    assert np.argmax(spectrum) / audio.seconds == pytest.approx(440, abs=3)


@pytest.mark.unit
@pytest.mark.parametrize(("kind", "subtype"), [("FLAC", "PCM_24"), ("WAV", "PCM_U8"), ("WAV", "FLOAT"), ("OGG", "VORBIS")])
def test_any_subtype_is_read(kind: str, subtype: str) -> None:
    """
    24 bit, 8 bit, float and lossy files come out as the same loudness.
    """
    wave = 0.5 * np.sin(np.arange(16_000) / 10)

    assert read_audio(encoded(wave, kind=kind, subtype=subtype)).rms == pytest.approx(0.5 / math.sqrt(2), rel=0.03)


@pytest.mark.unit
def test_what_can_not_be_used_says_why() -> None:
    """
    Each kind of damage has its own words.
    """
    whole = encoded(np.random.default_rng(0).standard_normal(16_000) * 0.1)
    not_numbers = encoded(np.full(1600, np.nan, dtype=np.float32), kind="WAV", subtype="FLOAT")
    for content, word in (
        (b"", "empty"),
        (b"these are words", "not readable as audio"),
        (whole[: len(whole) // 2], "cut off|not readable"),
        (encoded(np.zeros(0), kind="WAV"), "no samples"),
        (not_numbers, "not numbers"),
    ):
        with pytest.raises(AudioError, match=word):
            read_audio(content)


@pytest.mark.unit
def test_a_long_file_is_refused_before_it_is_decoded() -> None:
    """
    The contest's longest clip has 22 minutes; its length stands in its header.
    """
    with pytest.raises(AudioError, match=r"31\.0 s long, and the model hears 30 s"):
        read_audio(encoded(np.zeros(31 * 16_000)), max_seconds=30)
