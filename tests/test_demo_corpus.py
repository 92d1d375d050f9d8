"""
The corpus that ships with kidspeech is what its manifest says.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from kidspeech.demo import corpus, generate
from kidspeech.errors import InputError
from kidspeech.manifest import AGE_BUCKETS, AudioIndex, Utterance, read_manifest

MEGABYTE = 1_000_000


@pytest.fixture(name="utterances", scope="module")
def _utterances() -> list[Utterance]:
    return read_manifest(corpus().manifest)


@pytest.fixture(name="files", scope="module")
def _files(utterances: list[Utterance]) -> dict[str, Path]:
    index = AudioIndex(corpus().audio_dirs)
    found = {utterance.utterance_id: index.find(utterance) for utterance in utterances}
    return {name: path for name, path in found.items() if path is not None}


@pytest.mark.unit
def test_size() -> None:
    """
    The corpus takes less than 8 MB.
    """
    home = corpus().manifest.parent

    assert sum(path.stat().st_size for path in home.rglob("*") if path.is_file()) < 8 * MEGABYTE


@pytest.mark.unit
def test_every_clip_has_its_file(utterances: list[Utterance], files: dict[str, Path]) -> None:
    """
    Manifest and folders hold the same clips, no more on either side.
    """
    on_disk = [path.stem for folder in corpus().audio_dirs for path in folder.iterdir()]

    assert sorted(utterance.utterance_id for utterance in utterances) == sorted(files) == sorted(on_disk)


@pytest.mark.integration
def test_manifest_tells_the_truth(utterances: list[Utterance], files: dict[str, Path]) -> None:
    """
    md5, size and duration are those of the files, and audio_path reads as in the contest.
    """
    for utterance in utterances:
        data = files[utterance.utterance_id].read_bytes()
        info = soundfile.info(files[utterance.utterance_id])
        actual = (hashlib.md5(data).hexdigest(), len(data), round(info.frames / info.samplerate, 3))

        assert (utterance.md5_hash, utterance.filesize_bytes, utterance.audio_duration_sec) == actual
        assert utterance.audio_path == f"audio/{utterance.utterance_id}.flac"


@pytest.mark.unit
def test_children_of_every_age(utterances: list[Utterance]) -> None:
    """
    Every age bucket but "unknown" has at least three children, and no child has two ages.
    """
    children = defaultdict(set)
    for utterance in utterances:
        children[utterance.child_id].add(utterance.age_bucket)
    ages = Counter(age for (age,) in children.values())

    assert set(ages) == set(AGE_BUCKETS) - {"unknown"}
    assert min(ages.values()) >= 3


@pytest.mark.unit
def test_no_sentence_is_said_twice(utterances: list[Utterance]) -> None:
    """
    All sentences differ, so a child held out says nothing that was trained on; the words are few and come often.
    """
    texts = [utterance.orthographic_text for utterance in utterances]
    words = Counter(word for text in texts for word in text.split())

    assert len(set(texts)) == len(texts)
    assert 40 <= len(words) <= 70
    assert min(words.values()) >= 20


@pytest.mark.integration
def test_rates_and_channels_are_mixed(files: dict[str, Path]) -> None:
    """
    The folders differ in sampling rate, and a part of one is stereo.
    """
    seen = defaultdict(set)
    for path in files.values():
        info = soundfile.info(path)
        seen[path.parent.name].add((info.samplerate, info.channels))

    assert seen == {
        "audio_0": {(16_000, 1)},
        "audio_1": {(8_000, 1), (8_000, 2)},
        "audio_2": {(11_025, 1), (22_050, 1), (44_100, 1)},
    }


@pytest.mark.integration
def test_clips_are_quick_and_loud(utterances: list[Utterance], files: dict[str, Path]) -> None:
    """
    Every clip is audible and lasts between 0.3 and 4 seconds.
    """
    for utterance in utterances:
        wave, _ = soundfile.read(files[utterance.utterance_id], always_2d=True)

        assert 0.3 < (utterance.audio_duration_sec or math.nan) < 4
        assert np.abs(wave).max() == pytest.approx(generate.PEAK, abs=0.01)


@pytest.mark.unit
def test_grammar_gives_the_shipped_sentences(utterances: list[Utterance]) -> None:
    """
    The generator's plan is the shipped manifest: ids, ages and sentences, in order.
    """
    expected = [(clip.name, clip.child.age_bucket, clip.text) for clip in generate.clips()]

    assert expected == [(each.utterance_id, each.age_bucket, each.orthographic_text) for each in utterances]


@pytest.mark.integration
@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_generator_reproduces_clips(files: dict[str, Path]) -> None:
    """
    A clip of every child, spoken again, is the shipped one to the lowest bit that is kept.
    """
    for clip in list(generate.clips())[7 :: generate.SENTENCES_PER_CHILD]:
        shipped, rate = soundfile.read(files[clip.name], dtype="int16", always_2d=True)
        again = generate.render(clip)

        assert (rate, shipped.shape) == (clip.form.rate, again.shape)
        assert np.abs(shipped.astype(int) - again).max() <= 2**generate.LOW_BITS


@pytest.mark.integration
@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_the_first_clip_in_a_new_home_is_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Where no sound server ever ran, the first call of espeak-ng breathes as the second does, and leaves nothing behind.
    """
    clip = next(clip for clip in generate.clips() if clip.child.voice.endswith("f2"))  # a voice with breath
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "PULSE_RUNTIME_PATH", "PULSE_SERVER"):
        monkeypatch.delenv(name, raising=False)
    first, second = generate.speak(clip)[0], generate.speak(clip)[0]

    assert np.array_equal(first, second)
    assert not any(tmp_path.iterdir())


@pytest.mark.unit
def test_without_espeak(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Without espeak-ng the generator says what to install.
    """
    monkeypatch.setenv("PATH", "")

    with pytest.raises(InputError, match="install it"):
        generate.speak(next(generate.clips()))


@pytest.mark.integration
@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_unknown_voice() -> None:
    """
    A voice that espeak-ng does not have is an error with the name of the voice in it.
    """
    clip = next(generate.clips())

    with pytest.raises(InputError, match="as nobody"):
        generate.speak(replace(clip, child=replace(clip.child, voice="nobody")))
