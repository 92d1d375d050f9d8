"""
Make the demo's corpus: sixteen made-up children say sentences of a small grammar, in the contest's layout.

    python -m kidspeech.demo.generate OUT

Needs espeak-ng on the PATH (the shipped corpus was made with 1.51, and another version speaks differently). The rest is
fixed: sentences and voices by SEED, samples because espeak-ng draws the breath of its voices from a generator that it never
seeds, and nothing else may draw from it (see NO_SOUND_SERVER). Every child has a voice of its own and every sentence is
said once, so a split by child leaves both voices and sentences unheard for validation.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from kidspeech.errors import InputError, writing
from kidspeech.manifest import Utterance, write_jsonl

Waveform = npt.NDArray[np.float64]  # full scale is 1
Samples = npt.NDArray[np.int16]

SEED = 0
SENTENCES_PER_CHILD = 56
PEAK = 0.6  # of full scale
LOW_BITS = 8  # of 16 that are zero: FLAC stores none of them, so that a clip takes half the bytes
SILENCE = 0.02  # of the peak: what is quieter at either end is trimmed, since silence costs bytes and time
MARGIN = 0.03  # seconds kept before the first and after the last sound
# espeak-ng looks for a sound server even when it plays nothing, and PulseAudio's client, where it finds no runtime folder of
# its own (the first call under a new HOME), names one with rand(): the breath then starts at another random number, and a
# quiet end may be trimmed elsewhere. With a server named, one that never answers, it makes no folder.
NO_SOUND_SERVER = {"PULSE_SERVER": "unix:/dev/null"}

WORDS: dict[str, tuple[str, ...]] = {
    "who": ("i", "we", "you", "they", "mommy", "daddy"),
    "whose": ("the", "my", "your"),
    "did": ("saw", "found", "lost", "liked", "kicked", "wanted"),
    "animal": ("dog", "cat", "bird", "fish", "elephant", "duck", "horse", "monkey"),
    "thing": ("ball", "book", "apple", "boat", "cookie", "kite", "train", "flower"),
    "like": ("red", "blue", "green", "big", "little", "funny", "yellow"),
    "place": ("in the park", "at school", "under the bed", "on the table"),
    "when": ("today", "again", "please"),
}
SENTENCES: tuple[str, ...] = (
    "{who} {did} {whose} {like} {thing}",
    "{whose} {animal} {did} {whose} {like} {thing}",
    "{whose} {like} {animal} {did} {whose} {thing}",
    "{who} {did} {whose} {animal} {place}",
    "{who} {did} {whose} {thing} {when}",
    "can {who} see {whose} {like} {animal}",
    "where is {whose} {like} {thing}",
)


@dataclass(frozen=True, slots=True)
class Child:
    """
    One made-up speaker: espeak-ng's voice, pitch (0 to 99) and speed (words a minute), and how small the mouth is.

    The voices of espeak-ng are grown-ups': playing one *smaller* times as fast moves its formants up as a shorter vocal
    tract does.
    """

    name: str
    age_bucket: str
    voice: str
    pitch: int
    speed: int
    smaller: float


CHILDREN: tuple[Child, ...] = (
    Child("ada", "3-4", "en-us+f2", 80, 165, 1.18),
    Child("ben", "3-4", "en-us+m3", 95, 160, 1.20),
    Child("cleo", "3-4", "en-us+f4", 75, 170, 1.15),
    Child("dina", "3-4", "en-us+f3", 70, 160, 1.20),
    Child("eli", "5-7", "en-us+m1", 90, 175, 1.15),
    Child("fay", "5-7", "en-us+f1", 80, 170, 1.14),
    Child("gus", "5-7", "en-us+m7", 85, 180, 1.16),
    Child("hana", "5-7", "en-us+f5", 75, 175, 1.12),
    Child("ivan", "8-11", "en-us+m2", 85, 185, 1.10),
    Child("june", "8-11", "en+f2", 70, 185, 1.10),
    Child("kai", "8-11", "en-us+m4", 80, 190, 1.12),
    Child("lena", "8-11", "en-us+f2", 60, 190, 1.08),
    Child("milo", "12+", "en-us+m5", 70, 200, 1.05),
    Child("nora", "12+", "en-us+f3", 60, 200, 1.04),
    Child("otto", "12+", "en-us+m6", 75, 195, 1.06),
    Child("pia", "12+", "en-us+f1", 60, 205, 1.02),
)


@dataclass(frozen=True, slots=True)
class Form:
    """
    How a clip is stored: its folder, sampling rate in Hz, and channels.
    """

    folder: str
    rate: int
    channels: int = 1


# Dealt out in turn to the clips of each child. High rates cost bytes and are few.
FORMS: tuple[Form, ...] = (
    *[Form("audio_0", 16_000)] * 5,
    *[Form("audio_1", 8_000)] * 5,
    *[Form("audio_1", 8_000, channels=2)] * 2,
    *[Form("audio_2", 11_025)] * 3,
    Form("audio_2", 22_050),
)
RARE = Form("audio_2", 44_100)  # the last clip of each child


@dataclass(frozen=True, slots=True)
class Clip:
    """
    One utterance before it is spoken: who says what, with a little of a child's unsteadiness, and how it is stored.
    """

    child: Child
    text: str
    pitch: int
    speed: int
    form: Form

    @property
    def name(self) -> str:
        """
        The utterance's id.
        """
        return _id("U", f"{self.child.name}: {self.text}")


def main() -> None:
    """
    Write the corpus into the folder given on the command line.
    """
    parser = argparse.ArgumentParser(description="Make the demo's corpus (needs espeak-ng).")
    parser.add_argument("out", type=Path, help="folder for manifest.jsonl and the audio folders")
    generate(parser.parse_args().out)


def generate(out: Path) -> None:
    """
    Write manifest.jsonl and the audio folders into *out*.

    Raises:
        InputError: espeak-ng is not installed, or can't speak.
        StorageError: *out* can't be written.
    """
    write_jsonl(out / "manifest.jsonl", (record(clip, out).as_line() for clip in clips()))


def clips() -> Iterator[Clip]:
    """
    Yield every clip of the corpus, child by child.
    """
    draw = random.Random(SEED)
    texts = sentences(draw, len(CHILDREN) * SENTENCES_PER_CHILD)
    for child in CHILDREN:
        forms = [FORMS[i % len(FORMS)] for i in range(SENTENCES_PER_CHILD - 1)]
        draw.shuffle(forms)
        for form in [*forms, RARE]:
            pitch, speed = child.pitch + draw.randint(-4, 4), child.speed + draw.randint(-8, 8)
            yield Clip(child, texts.pop(), min(pitch, 99), speed, form)


def sentences(draw: random.Random, count: int) -> list[str]:
    """
    Return *count* different sentences of the grammar, in no order.
    """
    found: dict[str, None] = {}
    for frame in itertools.cycle(SENTENCES):
        # slot by slot, so that the two {whose} of a sentence are drawn apart
        found["".join(_fill(part, draw) for part in frame.replace("{", "\0{").split("\0"))] = None
        if len(found) == count:
            break
    texts = list(found)
    draw.shuffle(texts)
    return texts


def _fill(part: str, draw: random.Random) -> str:
    return part.format(**{slot: draw.choice(choices) for slot, choices in WORDS.items()})


def record(clip: Clip, out: Path) -> Utterance:
    """
    Speak *clip* into its folder under *out* and return its line of the manifest.

    Raises:
        InputError: espeak-ng is not installed, or can't speak.
        StorageError: the file can't be written.
    """
    wave = render(clip)
    data = encode(wave, clip.form.rate)
    path = out / clip.form.folder / f"{clip.name}.flac"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return Utterance(
        utterance_id=clip.name,
        audio_path=f"audio/{clip.name}.flac",
        child_id=_id("C", clip.child.name),
        session_id=_id("S", clip.child.name),
        age_bucket=clip.child.age_bucket,
        orthographic_text=clip.text,
        audio_duration_sec=round(len(wave) / clip.form.rate, 3),
        md5_hash=hashlib.md5(data, usedforsecurity=False).hexdigest(),
        filesize_bytes=len(data),
    )


def render(clip: Clip) -> Samples:
    """
    Return the samples of *clip* as they are stored, shape (n_samples, channels).

    Raises:
        InputError: espeak-ng is not installed, or can't speak.
    """
    spoken, rate = speak(clip)
    wave = trim(soxr.resample(spoken, rate * clip.child.smaller, clip.form.rate), clip.form.rate)
    return quantise(np.stack([wave, wave / 2][: clip.form.channels], axis=1))


def speak(clip: Clip) -> tuple[Waveform, int]:
    """
    Return what espeak-ng says, mono, and its sampling rate in Hz.

    Raises:
        InputError: espeak-ng is not installed, or can't speak.
    """
    if shutil.which("espeak-ng") is None:
        msg = "espeak-ng is not on the PATH; install it (apt install espeak-ng, brew install espeak-ng) and start again"
        raise InputError(msg)
    command = ["espeak-ng", "-v", clip.child.voice, "-p", str(clip.pitch), "-s", str(clip.speed), "-z", "--stdout", clip.text]
    done = subprocess.run(command, capture_output=True, check=False, env={**os.environ, **NO_SOUND_SERVER})
    if done.returncode:
        msg = f"espeak-ng can't say {clip.text!r} as {clip.child.voice}: {done.stderr.decode(errors='replace').strip()}"
        raise InputError(msg)
    wave, rate = soundfile.read(io.BytesIO(done.stdout))
    return wave, rate


def trim(wave: Waveform, rate: int) -> Waveform:
    """
    Return *wave* at its standard loudness and without the silence around it.
    """
    wave = wave * (PEAK / np.abs(wave).max())
    loud = np.flatnonzero(np.abs(wave) > SILENCE * PEAK)
    margin = int(MARGIN * rate)
    return wave[max(loud[0] - margin, 0) : loud[-1] + margin]


def quantise(wave: Waveform) -> Samples:
    """
    Return 16-bit samples of which the LOW_BITS lowest are zero.
    """
    step = 2**LOW_BITS
    samples: Samples = (np.round(wave * (2**15 / step)) * step).astype(np.int16)
    return samples


def encode(wave: Samples, rate: int) -> bytes:
    """
    Return *wave* as a FLAC file, packed as tightly as FLAC can.
    """
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format="FLAC", subtype="PCM_16", compression_level=1.0)
    return file.getvalue()


def _id(kind: str, text: str) -> str:
    return f"{kind}_{hashlib.sha256(text.encode()).hexdigest()[:16]}"


if __name__ == "__main__":
    main()
