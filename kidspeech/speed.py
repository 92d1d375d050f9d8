"""
Clips played faster or slower, as more training data (speed perturbation: Ko et al., 2015).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from kidspeech.features import SAMPLE_RATE, Featurizer, Waveform


@dataclass(frozen=True)
class Sped:
    """
    The features of a clip that is played *speed* times as fast: 1 / speed as long, its pitches and formants times speed.
    """

    featurizer: Featurizer
    speed: float

    @property
    def settings(self) -> dict[str, Any]:
        """
        Those of the featurizer, and the speed: copies have a cache of their own.
        """
        return self.featurizer.settings | {"speed": self.speed}

    @property
    def rows(self) -> int:
        """
        First dimension of what it returns.
        """
        return self.featurizer.rows

    @property
    def max_seconds(self) -> float:
        """
        How long a file may be, so that its copy is not longer than what the model hears.
        """
        return self.featurizer.max_seconds * self.speed

    def __call__(self, samples: Waveform) -> NDArray[np.float32]:
        """
        Return the features of *samples*, shape (rows, n_frames).
        """
        return self.featurizer(soxr.resample(samples, SAMPLE_RATE * self.speed, SAMPLE_RATE))
