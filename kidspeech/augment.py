"""
Augmentation of log-mel batches on the device they train on: other speakers, other rooms, parts that are missing.

Whisper's features keep the level: they are log10 of mel power, divided by 4 and moved by 1 (kidspeech.features.log_mel), so
that power comes back from them and noise and gain act on it as they would on the waveform. Two things are lost. What lies
eight decades or more under a clip's loudest bin was cut off there, and counts as silence here: it gets no louder with gain.
And phases are not kept, so the powers of speech and noise are added, which is what their sum has on average.

What is drawn for a clip depends on the seed, the epoch and the clip, not on the batch, the step or the device: a resumed
run, or one on other devices, hears the same. The drawing is done where batches are read, the arithmetic on the device;
nothing waits for either.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from kidspeech.config import Augment
from kidspeech.features import SAMPLE_RATE, log_mel, mel_power
from kidspeech.models.base import Batch

NYQUIST = SAMPLE_RATE / 2  # Hz
# Slaney's mel scale (Auditory Toolbox, 1998), that of Whisper's filters: linear to LINEAR_TO, logarithmic from there
LINEAR_TO, LINEAR_MELS, MELS_A_NEPER = 1000.0, 15.0, 27 / math.log(6.4)
HIGHEST_MEL = LINEAR_MELS + MELS_A_NEPER * math.log(NYQUIST / LINEAR_TO)
WARP_KNEE = 4800.0  # Hz, up to which the warp is the factor itself: Jaitly and Hinton (2013), to hold the formants
LEVELS = 5  # draws a clip, before those of the masks: warp, gain, whether noise, from where, how loud


@dataclass(frozen=True)
class Draws:
    """
    What chance gives each clip: numbers in [0, 1) that Augmentation makes masks, levels and factors of.

    Attributes:
        seed: of the run.
        count: numbers a clip.
    """

    seed: int
    count: int

    def __call__(self, epoch: int, clips: Iterable[int]) -> NDArray[np.float32]:
        """
        Return the numbers of each clip number in an epoch (from 0), shape (clips, count).
        """
        rows = [np.random.default_rng([self.seed, epoch, int(clip)]).random(self.count, np.float32) for clip in clips]
        return np.stack(rows)


class Augmentation:
    """
    The section `augment` of a recipe, applied to batches.
    """

    def __init__(self, settings: Augment, noise: torch.Tensor | None = None) -> None:
        """
        Args:
            settings: how much of each.
            noise: log-mel features of noise, float16, shape (n_mels, frames), on the device of the batches: see
                kidspeech.noise.read_noise; None mixes none.
        """
        self.settings, self.noise = settings, noise

    @property
    def masks(self) -> int:
        """
        How many masks a clip gets.
        """
        return self.settings.time_masks + self.settings.mel_masks

    @property
    def sounds(self) -> bool:
        """
        Whether power is changed, by warp, gain or noise.
        """
        return self.settings.warp > 0 or self.settings.gain_db > 0 or self.noise is not None

    def draws(self, seed: int) -> Draws | None:
        """
        Return what is to be drawn in a run, None where nothing is augmented.
        """
        return Draws(seed, LEVELS + 2 * self.masks) if self.masks or self.sounds else None

    def __call__(self, batch: Batch) -> Batch:
        """
        Return *batch* with its input_features augmented: warp, noise, gain, then masks; as it is where draws are missing.

        Frames after a clip stay what the feature extractor makes of silence.

        Args:
            batch: of Batches, with n_frames (clips,), draws (clips, count), and input_features (clips, n_mels, frames).
        """
        if "draws" not in batch:
            return batch
        features, draws = batch["input_features"], batch["draws"]
        frames = torch.arange(features.shape[2], device=features.device)
        sounding = (
            frames < batch["n_frames"][:, None] - 1
        )  # a clip's last frame is silence: see kidspeech.features.n_frames_of
        if self.sounds:
            features = self._sound(features, sounding, draws)
        masked = self._masked(features.shape[1], batch["n_frames"] - 1, frames, draws[:, LEVELS:])
        return batch | {"input_features": torch.where(masked & sounding[:, None], _mean(features, sounding), features)}

    def _sound(self, features: torch.Tensor, sounding: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        warp, gain, whether, place, level = draws[:, :LEVELS].unbind(1)
        silence = features.amin((1, 2), keepdim=True)
        if self.settings.warp:
            features = warped(features, 1 + self.settings.warp * (2 * warp - 1))
        power = torch.where(features > silence, mel_power(features), 0)
        if self.noise is not None:
            lowest, highest = self.settings.noise_min_db, self.settings.noise_max_db
            ratio = decibels(lowest + (highest - lowest) * level)
            power = power + (whether < self.settings.noise_share)[:, None, None] * self._noise(power, sounding, place, ratio)
        return log_mel(power * decibels(self.settings.gain_db * (2 * gain - 1))[:, None, None])

    def _noise(self, power: torch.Tensor, sounding: torch.Tensor, place: torch.Tensor, ratio: torch.Tensor) -> torch.Tensor:
        """
        Return a stretch of noise for each clip, 1/*ratio* as strong as the clip over its length, and nothing after it.

        Args:
            power: shape (clips, n_mels, frames).
            sounding: shape (clips, frames).
            place: shape (clips,), where in the noise to begin, in [0, 1).
            ratio: shape (clips,), power of speech over power of noise.
        """
        assert self.noise is not None
        total = self.noise.shape[1]
        frames = torch.arange(power.shape[2], device=power.device)
        places = ((place * total).long()[:, None] + frames) % total
        noise = mel_power(self.noise[:, places].transpose(0, 1).float()) * sounding[:, None]
        speech, other = (self._waveform_power(each * sounding[:, None]) for each in (power, noise))
        return noise * (speech / (other * ratio))[:, None, None]  # features of silence too are above 0

    @staticmethod
    def _waveform_power(power: torch.Tensor) -> torch.Tensor:
        # Slaney scales each band by 2 over its width; without that, the bands add up to the power of the waveform
        hertz = _band_hertz(power.shape[1], power.device)
        return (power.sum(2) * (hertz[2:] - hertz[:-2])).sum(1)

    def _masked(self, n_mels: int, n_frames: torch.Tensor, frames: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """
        Return what SpecAugment masks, shape (clips, n_mels, frames).
        """
        settings = self.settings
        in_time, in_mel = draws.split((2 * settings.time_masks, 2 * settings.mel_masks), dim=1)
        longest = (n_frames * settings.time_mask_share).floor().clamp(max=settings.time_mask_frames)
        bands, size = torch.arange(n_mels, device=draws.device), torch.full_like(n_frames, n_mels)
        widest = size.clamp(max=settings.mel_mask_bands)
        return spans(in_time, longest, n_frames, frames)[:, None] | spans(in_mel, widest, size, bands)[:, :, None]


def spans(draws: torch.Tensor, longest: torch.Tensor, size: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """
    Return which *places* lie in one of the spans that *draws* give each clip, shape (clips, places).

    A span's length is uniform from 0 to *longest*, its start uniform where it fits: SpecAugment (Park et al., 2019), 2.

    Args:
        draws: shape (clips, 2 * spans), in [0, 1): lengths and starts in turn.
        longest: shape (clips,).
        size: shape (clips,), how many places a clip has.
        places: shape (places,), counted from 0.
    """
    longest, size = longest[:, None].float(), size[:, None].float()
    # the product of a draw next to 1 may round up to what it must stay under
    lengths = (draws[:, 0::2] * (longest + 1)).floor().minimum(longest)
    starts = (draws[:, 1::2] * (size - lengths + 1)).floor().minimum(size - lengths)
    inside = (places >= starts[:, :, None]) & (places < (starts + lengths)[:, :, None])
    return inside.any(1)


def warped(features: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """
    Return features with the frequency axis warped as by another length of the vocal tract.

    Each band takes the value at its frequency times *factor*, between the two bands nearest to it; above WARP_KNEE the
    warp bends so that it ends at NYQUIST. Jaitly and Hinton, Vocal tract length perturbation improves speech recognition
    (2013), equation 1.

    Args:
        features: shape (clips, n_mels, frames).
        factor: shape (clips,); above 1 the formants move down.
    """
    n_mels, frames = features.shape[1:]
    hertz = _band_hertz(n_mels, features.device)[1:-1]
    factor = factor[:, None]
    reached = WARP_KNEE * factor.clamp(max=1)
    knee = reached / factor
    bent = NYQUIST - (NYQUIST - reached) / (NYQUIST - knee) * (NYQUIST - hertz)
    source = torch.where(hertz <= knee, hertz * factor, bent)
    places = (_mel(source) * (n_mels + 1) / HIGHEST_MEL - 1).clamp(0, n_mels - 1)
    low = places.floor().clamp(max=n_mels - 2).long()
    lower, upper = (features.gather(1, index[:, :, None].expand(-1, -1, frames)) for index in (low, low + 1))
    return torch.lerp(lower, upper, (places - low)[:, :, None])


def decibels(level: torch.Tensor) -> torch.Tensor:
    """
    Return the ratio of powers that a level in dB is.
    """
    return 10 ** (level / 10)


def _mean(features: torch.Tensor, sounding: torch.Tensor) -> torch.Tensor:
    # SpecAugment masks with the mean. The row's minimum would be a pause to Whisper, which learnt what silence looks like
    # from the padding of every clip; words the text has there would teach it to hear some in silence.
    count = sounding.sum(1).clamp(min=1) * features.shape[1]
    return ((features * sounding[:, None]).sum((1, 2)) / count)[:, None, None]


def _band_hertz(n_mels: int, device: torch.device) -> torch.Tensor:
    # lower edge, centre and upper edge of band i stand at i, i + 1 and i + 2
    mel = torch.linspace(0, HIGHEST_MEL, n_mels + 2, device=device)
    curved = LINEAR_TO * torch.exp((mel - LINEAR_MELS) / MELS_A_NEPER)
    return torch.where(mel < LINEAR_MELS, mel * LINEAR_TO / LINEAR_MELS, curved)


def _mel(hertz: torch.Tensor) -> torch.Tensor:
    curved = LINEAR_MELS + MELS_A_NEPER * torch.log(hertz.clamp(min=LINEAR_TO) / LINEAR_TO)
    return torch.where(hertz < LINEAR_TO, hertz * LINEAR_MELS / LINEAR_TO, curved)
