"""
Augmentation: what is masked, warped, louder and noisier, and what never changes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings, strategies

from kidspeech.augment import Augmentation, warped
from kidspeech.collate import Collator
from kidspeech.config import Augment, load_recipe
from kidspeech.errors import RecipeError
from kidspeech.features import SAMPLE_RATE, LogMel, mel_power
from kidspeech.models import Batch, create_model
from kidspeech.noise import read_noise

from corpora import TINY

pytestmark = pytest.mark.unit

RATE = SAMPLE_RATE


@pytest.fixture(name="featurizer", scope="module")
def _featurizer() -> LogMel:
    recipe = load_recipe("whisper-small", ["model.pretrained=null", "model.language=null", f"model.random={TINY}"])
    featurizer = create_model(recipe.model).featurizer
    assert isinstance(featurizer, LogMel)
    return featurizer


def batch_of(clips: list[np.ndarray], frames: int | None = None) -> Batch:
    rows = [{"input_features": clip.astype(np.float16).ravel(), "seconds": clip.shape[1] / 100} for clip in clips]
    return Collator(clips[0].shape[0], lambda longest: frames or longest)(rows)


def speechlike(frames: int, seed: int = 0) -> np.ndarray:
    """
    Return features like the extractor's: up to eight decades under the loudest bin, the last frame silent.
    """
    features = np.clip(np.random.default_rng(seed).normal(0, 0.6, (80, frames)), -1, 1)
    features[0, 0], features[:, -1] = 1, -1
    return features


def noise_of(frames: int = 5000) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(9).normal(-0.3, 0.1, (80, frames)).astype(np.float16))


def augmented(
    augmentation: Augmentation, batch: Batch, clips: list[int] | None = None, seed: int = 0, epoch: int = 0
) -> torch.Tensor:
    draws = augmentation.draws(seed)
    given = {} if draws is None else {"draws": torch.from_numpy(draws(epoch, clips or range(len(batch["n_frames"]))))}
    result = augmentation(batch | given)["input_features"]
    assert isinstance(result, torch.Tensor)
    return result


lengths = strategies.lists(strategies.integers(4, 90), min_size=1, max_size=4)
strengths = strategies.builds(
    Augment,
    time_masks=strategies.integers(0, 3),
    time_mask_frames=strategies.integers(1, 30),
    time_mask_share=strategies.floats(0, 0.5),
    mel_masks=strategies.integers(0, 3),
    mel_mask_bands=strategies.integers(1, 100),
    gain_db=strategies.floats(0, 12),
    warp=strategies.floats(0, 0.3),
    noise_share=strategies.floats(0, 1),
)


def test_all_off_is_the_same_tensor() -> None:
    """
    The defaults draw nothing and touch nothing.
    """
    augmentation, batch = Augmentation(Augment()), batch_of([speechlike(50), speechlike(30)])

    assert augmentation.draws(0) is None
    assert augmentation(batch)["input_features"] is batch["input_features"]


@settings(deadline=None, max_examples=60)
@given(lengths, strengths, strategies.booleans(), strategies.integers(0, 99))
def test_what_follows_a_clip_stays_what_the_extractor_pads_with(
    frames: list[int], strength: Augment, noisy: bool, seed: int
) -> None:
    """
    After any augmentation, a clip's last frame and the padding hold one value: eight decades under the clip's loudest bin or
    the floor of 1e-10, as of silence in the waveform.
    """
    clips = [speechlike(count, seed) for count in frames]
    batch = batch_of(clips, 96)
    augmentation = Augmentation(strength, noise_of() if noisy else None)
    after = augmented(augmentation, batch, seed=seed)
    unmasked = Augmentation(strength.model_copy(update={"time_masks": 0, "mel_masks": 0}), augmentation.noise)
    before_masks = augmented(unmasked, batch, seed=seed) if unmasked.sounds else batch["input_features"]

    for features, whole, count in zip(after, before_masks, frames, strict=True):
        silence = max(float(whole.max()) - 2, -1.5)
        assert features[:, count - 1 :].unique().numel() == 1
        assert float(features[0, -1]) == pytest.approx(silence, abs=1e-5)
        assert whole.min() == features[0, -1]


@settings(deadline=None, max_examples=60)
@given(lengths, strengths, strategies.integers(0, 99))
def test_masks_keep_to_their_share_and_hold_the_mean(frames: list[int], strength: Augment, seed: int) -> None:
    """
    Only whole frames and whole bands of the clip change, no more than the settings allow, all to the clip's mean.
    """
    strength = strength.model_copy(update={"gain_db": 0.0, "warp": 0.0})
    batch = batch_of([speechlike(count, seed) for count in frames], 96)
    after = augmented(Augmentation(strength), batch, seed=seed)

    for then, now, count in zip(batch["input_features"], after, frames, strict=True):
        changed = then != now
        assert not changed[:, count - 1 :].any()
        sounding, changed = then[:, : count - 1], changed[:, : count - 1]
        columns, rows = changed.all(0), changed.all(1)
        most = strength.time_masks * min(strength.time_mask_frames, int(strength.time_mask_share * (count - 1) + 1e-3))
        assert columns.sum() <= most or rows.all()
        assert rows.sum() <= strength.mel_masks * strength.mel_mask_bands or columns.all()
        assert (changed == (columns | rows[:, None])).all()
        torch.testing.assert_close(now[:, : count - 1][changed], sounding.mean().expand(int(changed.sum())), rtol=0, atol=1e-5)


def test_masks_come_in_every_length_up_to_the_longest() -> None:
    """
    Over 400 clips of 101 frames, one mask of at most 10 frames has each length from 0 to 10, and reaches both ends.
    """
    batch = batch_of([speechlike(101)] * 400)
    after = augmented(Augmentation(Augment(time_masks=1)), batch)
    masked = (batch["input_features"] != after).all(1)

    assert set(masked.sum(1).tolist()) == set(range(11))
    assert masked[:, 0].any()
    assert masked[:, 99].any()


@settings(deadline=None, max_examples=40)
@given(lengths, strengths, strategies.booleans(), strategies.integers(0, 99))
def test_a_clip_alone_is_augmented_as_in_any_batch(frames: list[int], strength: Augment, noisy: bool, seed: int) -> None:
    """
    The draws belong to the clip: not its place, the batch's other clips nor its length matter.
    """
    augmentation = Augmentation(strength, noise_of() if noisy else None)
    clips = [speechlike(count, place) for place, count in enumerate(frames)]
    numbers = [31 * place + 7 for place in range(len(clips))]
    together = augmented(augmentation, batch_of(clips, 96), numbers, seed)

    for clip, number, features in zip(clips, numbers, together, strict=True):
        alone = augmented(augmentation, batch_of([clip]), [number], seed)[0]
        torch.testing.assert_close(alone, features[:, : clip.shape[1]], rtol=0, atol=1e-5)


def test_seed_epoch_and_clip_decide() -> None:
    """
    The same three give the same bits; another of any gives something else.
    """
    strength = Augment(time_masks=2, mel_masks=2, gain_db=6, warp=0.1)
    augmentation, batch = Augmentation(strength, noise_of()), batch_of([speechlike(80)])
    first = augmented(augmentation, batch, [5], 1, 2)

    assert torch.equal(first, augmented(augmentation, batch, [5], 1, 2))
    for clip, seed, epoch in ((6, 1, 2), (5, 2, 2), (5, 1, 3)):
        assert not torch.equal(first, augmented(augmentation, batch, [clip], seed, epoch))


def test_gain_is_the_gain_of_the_waveform(featurizer: LogMel) -> None:
    """
    Features 6 dB and less louder or softer equal those of the louder or softer waveform.
    """
    waveform = 0.1 * np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    waveform[RATE // 2 :] = 0
    features = featurizer(waveform)
    augmentation = Augmentation(Augment(gain_db=6))
    draws = augmentation.draws(3)
    assert draws is not None
    for clip in range(5):
        factor = 10 ** (6 * (2 * float(draws(0, [clip])[0, 1]) - 1) / 20)
        expected = torch.from_numpy(featurizer((factor * waveform).astype(np.float32)))
        found = augmented(augmentation, batch_of([features]), [clip], 3)[0]
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)  # the cache's float16


def test_noise_has_the_ratio_that_was_drawn(featurizer: LogMel) -> None:
    """
    Mixed at 10 dB in the power domain: within 2 % of the power, band by band, of waveforms mixed at 10 dB.
    """
    random = np.random.default_rng(0)
    time = np.arange(4 * RATE) / RATE
    speech = sum(0.1 * np.sin(2 * np.pi * hertz * time + hertz) for hertz in (210, 640, 1900, 3300)).astype(np.float32)
    noise = random.standard_normal(len(time)).astype(np.float32) * 0.02
    level = np.sqrt((speech**2).mean() / (noise**2).mean() / 10)
    expected = mel_power(torch.from_numpy(featurizer(speech + level * noise))).mean(1)
    strength = Augment(noise="unused", noise_share=1, noise_min_db=10, noise_max_db=10)
    stored = torch.from_numpy(featurizer(noise)[:, :-2].astype(np.float16))
    found = mel_power(augmented(Augmentation(strength, stored), batch_of([featurizer(speech)]))[0]).mean(1)

    torch.testing.assert_close(found, expected, rtol=0.15, atol=0)
    assert float((found / expected).log().mean().exp()) == pytest.approx(1, abs=0.02)


def test_noise_comes_to_its_share_of_the_clips() -> None:
    """
    With a share of 0.25, 100 of 400 clips, give or take 30, change; the others stay as they are to float32's accuracy.
    """
    batch = batch_of([speechlike(20)] * 400)
    after = augmented(Augmentation(Augment(noise_share=0.25, noise_min_db=0, noise_max_db=0), noise_of()), batch)
    moved = (after - batch["input_features"]).abs().amax((1, 2))

    assert 70 < (moved > 1e-3).sum() < 130
    assert set((moved > 1e-3).tolist()) == set((moved > 1e-2).tolist())


def test_silence_stays_silence() -> None:
    """
    A clip without a sound takes no noise, and nothing becomes infinite or no number.
    """
    silent = np.full((80, 30), -1.5)
    augmentation = Augmentation(Augment(gain_db=6, warp=0.2, noise_share=1, time_masks=2), noise_of())

    assert (augmented(augmentation, batch_of([silent, silent])) == -1.5).all()


@pytest.mark.parametrize("factor", [0.85, 1.2])
def test_warping_moves_a_tone_by_the_factor(featurizer: LogMel, factor: float) -> None:
    """
    A tone at 1,500 Hz appears within a band of 1,500 Hz over the factor; a factor of 1 and the padding's value stay.
    """
    time = np.arange(RATE) / RATE

    def peak(hertz: float) -> int:
        return int(featurizer(np.sin(2 * np.pi * hertz * time).astype(np.float32))[:, 50].argmax())

    features = torch.from_numpy(featurizer(np.sin(2 * np.pi * 1500 * time).astype(np.float32)))[None]
    moved = warped(features, torch.tensor([factor]))[0]

    assert abs(int(moved[:, 50].argmax()) - peak(1500 / factor)) <= 1
    assert moved.min() == features.min()
    torch.testing.assert_close(warped(features, torch.ones(1)), features, rtol=0, atol=1e-4)


def test_a_folder_of_noise_is_read_once(
    featurizer: LogMel, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Recordings of any length and rate, in the order of their paths, without what lies beside them; then from the cache.
    """
    (tmp_path / "noise" / "deep").mkdir(parents=True)
    (tmp_path / "noise" / "README.md").write_text("noise", encoding="utf-8")
    random = np.random.default_rng(0)
    soundfile.write(tmp_path / "noise" / "b.wav", 0.1 * random.standard_normal(40 * 8000), 8000)
    soundfile.write(tmp_path / "noise" / "deep" / "c.flac", 0.1 * random.standard_normal((RATE, 2)), RATE)
    first = read_noise(tmp_path / "noise", featurizer, cache)
    monkeypatch.setattr("kidspeech.reading.read_audio", None)

    assert first.shape == (80, 4002 + 102)
    assert first.dtype == torch.float16
    assert torch.equal(first, read_noise(tmp_path / "noise", featurizer, cache))


def test_noise_that_can_not_be_used_is_named(featurizer: LogMel, tmp_path: Path, cache: Path) -> None:
    """
    No folder, an empty one, and a broken recording.
    """
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(RecipeError, match=r"augment\.noise: .* is no folder with recordings"):
            read_noise(folder, featurizer, cache)
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    with pytest.raises(RecipeError, match=r"broken\.wav can't be used: not readable as audio"):
        read_noise(tmp_path, featurizer, cache)
