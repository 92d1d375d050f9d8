"""
Bad audio: one corpus with every kind of damage we could think of. The run ends, and each file is used rightly or listed.
"""

from __future__ import annotations

import io
import json
import os
import unicodedata
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import soundfile

from kidspeech import examples
from kidspeech.config import load_recipe
from kidspeech.dataset import build_dataset

from corpora import TINY

pytestmark = pytest.mark.integration
NOISE = np.random.default_rng(0).standard_normal(16_000).astype(np.float32) * 0.1


@dataclass(frozen=True)
class Kind:
    """
    A kind of file: how it is made, and either what the reason must begin with, or (seconds, rate, channels).
    """

    make: Callable[[Path], object]
    reason: str = ""
    facts: tuple[float, int, int] = (1.0, 16_000, 1)
    name: str = ""  # of the file, where it isn't <kind>.flac
    asked: str = ""  # of the file in the manifest, where that is another


def encoded(samples: np.ndarray = NOISE, rate: int = 16_000, kind: str = "FLAC", subtype: str | None = None) -> bytes:
    """
    Return *samples* as a file.
    """
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def audio(*arguments: Any, **options: Any) -> Callable[[Path], object]:
    """
    Return a maker of the file that `encoded` makes.
    """
    return lambda path: path.write_bytes(encoded(*arguments, **options))


def altered(change: Callable[[bytearray], bytes | bytearray], **options: Any) -> Callable[[Path], object]:
    """
    Return a maker of a file whose bytes were changed.
    """
    return lambda path: path.write_bytes(change(bytearray(encoded(**options))))


def cut(share: float) -> Callable[[Path], object]:
    """
    Return a maker of a FLAC file that ends after *share* of it.
    """
    return altered(lambda content: content[: int(len(content) * share)])


def put(content: bytes, place: int, **options: Any) -> Callable[[Path], object]:
    """
    Return a maker of a file with *content* written over it at *place*.
    """
    return altered(lambda whole: whole[:place] + content + whole[place + len(content) :], **options)


def total(samples: int) -> Callable[[Path], object]:
    """
    Return a maker of a FLAC file whose header announces *samples*: the last 36 bits of STREAMINFO's eight from byte 18 on.
    """

    def change(content: bytearray) -> bytearray:
        word = int.from_bytes(content[18:26], "big") >> 36 << 36 | samples
        return content[:18] + bytearray(word.to_bytes(8, "big")) + content[26:]

    return altered(change)


def streamed(content: bytearray) -> bytearray:
    """
    Return FLAC as an encoder writes it into a pipe: the header announces nothing.
    """
    return content[:21] + bytes([content[21] & 0xF0, 0, 0, 0, 0]) + content[26:]


def zipped(path: Path) -> None:
    """
    Make a zip archive.
    """
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.flac", encoded())


def tone(rate: int, channels: int = 1) -> np.ndarray:
    """
    Return one second of a tone in each channel.
    """
    wave = 0.3 * np.sin(np.arange(rate) / rate * 2764)
    return np.column_stack([wave] * channels)


NO_AUDIO, CUT, LOST = "audio not readable as audio", "audio cut off", "audio not found"
FLOAT = {"kind": "WAV", "subtype": "FLOAT"}
KINDS: dict[str, Kind] = {
    "whole": Kind(audio()),
    "cut_in_the_header": Kind(cut(0.0005), NO_AUDIO),
    "cut_after_the_header": Kind(altered(lambda content: content[:60]), "audio "),
    "cut_at_a_tenth": Kind(cut(0.1), "audio "),
    "cut_at_half": Kind(cut(0.5), "audio "),
    "cut_at_the_last_bytes": Kind(altered(lambda content: content[:-20]), "audio "),
    "wrong_header": Kind(put(b"FLaC", 0), NO_AUDIO),
    "header_of_zeros": Kind(put(bytes(42), 0), NO_AUDIO),
    "zeros_in_the_middle": Kind(put(bytes(6000), 9000), "audio "),
    "zero_bytes": Kind(lambda path: path.write_bytes(b""), "audio the file is empty"),
    "only_zeros": Kind(lambda path: path.write_bytes(bytes(9999)), NO_AUDIO),
    "text": Kind(lambda path: path.write_text("a red ball\n" * 99), NO_AUDIO),
    "html": Kind(lambda path: path.write_text("<!doctype html><title>404 Not Found</title>"), NO_AUDIO),
    "json": Kind(lambda path: path.write_text('{"error": "expired"}'), NO_AUDIO),
    "lfs_pointer": Kind(lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), NO_AUDIO),
    "zip": Kind(zipped, NO_AUDIO),
    "id3_before_flac": Kind(altered(lambda content: b"ID3\x04\0\0\0\0\0\x0a" + bytes(10) + content)),
    "trailing_garbage": Kind(altered(lambda content: content + b"garbage" * 99)),
    "wav_inside": Kind(audio(kind="WAV")),
    "ogg_inside": Kind(audio(kind="OGG")),
    "aiff_inside": Kind(audio(kind="AIFF")),
    "mp3_inside": Kind(audio(kind="MP3"), facts=(1.0, 16_000, 1)),
    "24_bit": Kind(audio(subtype="PCM_24")),
    "8_bit_flac": Kind(audio(subtype="PCM_S8")),
    "8_bit_wav": Kind(audio(kind="WAV", subtype="PCM_U8")),
    "float_wav": Kind(audio(**FLOAT)),
    "double_wav": Kind(audio(kind="WAV", subtype="DOUBLE")),
    "mu_law": Kind(audio(kind="WAV", subtype="ULAW")),
    "8_channels": Kind(audio(tone(16_000, 8)), facts=(1.0, 16_000, 8)),
    **{f"{rate}_hz": Kind(audio(tone(rate), rate), facts=(1.0, rate, 1)) for rate in (8000, 11_025, 12_345, 96_000, 192_000)},
    "192_khz_stereo": Kind(audio(tone(192_000, 2), 192_000), facts=(1.0, 192_000, 2)),
    "1_hz": Kind(audio(np.zeros(3), 1, "WAV"), facts=(3.0, 1, 1)),
    "10_ms": Kind(audio(NOISE[:160]), "too short: 0.010 s"),
    "one_sample": Kind(audio(NOISE[:1]), "too short: 0.000 s"),
    "no_samples": Kind(audio(NOISE[:0], kind="WAV"), "audio it has no samples"),
    "1400_seconds": Kind(audio(np.zeros(1400 * 8000, np.int16), 8000), "audio 1400.0 s long"),
    "30_seconds": Kind(audio(np.zeros(480_000)), facts=(30.0, 16_000, 1)),
    "direct_current": Kind(audio(np.full(16_000, 0.5))),
    "silence": Kind(audio(np.zeros(16_000))),
    "full_scale_square": Kind(audio(np.sign(tone(16_000)))),
    "nan": Kind(audio(np.full(16_000, np.nan), **FLOAT), "audio it holds samples that are not numbers"),
    "one_nan": Kind(put(b"\0\0\xc0\x7f", 4000, **FLOAT), "audio it holds samples that are not numbers"),
    "inf": Kind(audio(np.full(16_000, np.inf), **FLOAT), "audio it holds samples that are not numbers"),
    "huge_values": Kind(audio(NOISE * 1e30, **FLOAT), "audio its samples go to"),
    "loud_values": Kind(audio(NOISE * 30, **FLOAT)),
    "announces_more": Kind(total(20_000), "audio "),
    "announces_far_more": Kind(total(2**36 - 1), "audio "),
    "announces_less": Kind(total(8_000), facts=(0.5, 16_000, 1)),
    "announces_nothing": Kind(total(0)),
    "announces_nothing_and_is_cut": Kind(altered(lambda whole: streamed(whole)[: len(whole) // 2]), NO_AUDIO),
    "announces_nothing_and_is_long": Kind(altered(lambda whole: streamed(whole), samples=np.zeros(16_000 * 31)), "audio 3"),
    "wav_announces_more": Kind(put((10**6).to_bytes(4, "little"), 40, kind="WAV", subtype="PCM_16")),
    "vanishes": Kind(audio(), "audio can't be read: No such file"),
    "grows": Kind(audio(), "audio can't be read: it changed"),
    "turns_into_a_pipe": Kind(audio(), "audio can't be read: it changed"),
    "folder": Kind(Path.mkdir, LOST),
    "may_not_be_read": Kind(audio(), "audio can't be read: Permission denied"),
    "dangling_link": Kind(lambda path: path.symlink_to("nowhere"), "audio can't be read: No such file"),
    "link_loop": Kind(lambda path: path.symlink_to(path.name), "audio can't be read: Too many levels"),
    "link_to_whole": Kind(lambda path: path.symlink_to("whole.flac")),
    "pipe": Kind(os.mkfifo, "audio can't be read: not a regular file"),
    "endless_device": Kind(lambda path: path.symlink_to("/dev/zero"), "audio can't be read: not a regular file"),
    "newline": Kind(audio(), name="a\nb.flac"),
    "quotes": Kind(audio(), name="it's \"fine\" \\ 100%.flac"),
    "composed_for_decomposed": Kind(audio(), name=unicodedata.normalize("NFD", "José.flac"), asked="José.flac"),
    "decomposed_for_composed": Kind(audio(), name="Zoë.flac", asked=unicodedata.normalize("NFD", "Zoë.flac")),
    "upper_case_extension": Kind(audio(), LOST, name="UPPER.FLAC", asked="UPPER.flac"),
    "not_utf8": Kind(audio(), LOST, name="caf\udce9.flac", asked="café.flac"),
    "empty_file_name": Kind(lambda _: None, LOST, asked="audio/"),
    "zero_in_the_name": Kind(lambda _: None, LOST, asked="a\0b.flac"),
}  # fmt: skip
DURING: dict[str, Callable[[Path], object]] = {
    "vanishes": Path.unlink,
    "grows": lambda path: path.write_bytes(path.read_bytes() + b"more"),
    "turns_into_a_pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.fixture(name="found", scope="module")
def _found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """
    Prepare all kinds at once and return what became of each: its row, or its line of skipped.jsonl.
    """
    place = tmp_path_factory.mktemp("damage")
    (place / "audio").mkdir()
    (place / "recipe.yaml").write_text(f"data: {{max_skipped: 1, workers: 1}}\nmodel: {{random: {TINY}}}\n", encoding="utf-8")
    lines = [line(place / "audio", *entry) for entry in enumerate(KINDS.items())]
    (place / "manifest.jsonl").write_text("".join(json.dumps(record) + "\n" for record in lines), encoding="utf-8")
    located, patch = examples.FeatureCache, pytest.MonkeyPatch()

    def meanwhile(*arguments: Any) -> Any:
        for kind, change in DURING.items():
            change(place / "audio" / f"{kind}.flac")
        return located(*arguments)

    with patch.context() as patched:
        patched.setattr(examples, "FeatureCache", meanwhile)
        recipe = load_recipe(place / "recipe.yaml", ["data.split_tolerance=1"])
        build_dataset(recipe, [place / "manifest.jsonl"], [place / "audio"], place / "DATA", cache=place / "cache")
    sides = datasets.load_from_disk(str(place / "DATA"))
    skipped = map(json.loads, (place / "DATA" / "skipped.jsonl").read_text(encoding="utf-8").splitlines())
    return {row["utterance_id"]: row for side in sides.values() for row in side} | {
        row["utterance_id"]: row for row in skipped
    }


def line(folder: Path, number: int, entry: tuple[str, Kind]) -> dict[str, str]:
    """
    Make a file and return its line of the manifest.
    """
    name, kind = entry
    file = kind.name or f"{name}.flac"
    kind.make(folder / file)
    if name == "may_not_be_read":
        (folder / file).chmod(0)
    return {
        "utterance_id": name,
        "child_id": f"C_{number % 9}",
        "audio_path": kind.asked or f"audio/{file}",
        "orthographic_text": "red",
    }


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_is_used_rightly_or_listed(name: str, found: dict[str, dict[str, Any]]) -> None:
    """
    A listed file has the reason that fits; a used one its true length, rate and channels, and features that are numbers.
    """
    kind, entry = KINDS[name], found[name]
    if name == "may_not_be_read" and os.geteuid() == 0:
        pytest.skip("root may read everything")
    if kind.reason:
        assert entry.get("reason", "it was used").startswith(kind.reason)
        return
    assert "reason" not in entry, entry["reason"]
    features = np.asarray(entry["input_features"], dtype=np.float32).reshape(80, -1)
    assert (entry["seconds"], entry["sampling_rate"], entry["channels"]) == (
        pytest.approx(kind.facts[0], abs=0.08),
        *kind.facts[1:],
    )
    assert np.isfinite(features).all()
    assert features.shape[1] == entry["n_frames"] <= 3000


def test_no_kind_is_forgotten(found: dict[str, dict[str, Any]]) -> None:
    """
    Every line of the manifest came out on one side or in the list, and there are forty kinds of damage at least.
    """
    assert set(found) == set(KINDS)
    assert len(KINDS) > 60
