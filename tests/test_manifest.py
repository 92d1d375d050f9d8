"""
Manifests: read whole or refused with every problem and its line; audio found by name.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies

from kidspeech.errors import ManifestError, StorageError
from kidspeech.manifest import AGE_BUCKETS, LABELLED, REQUIRED, AudioIndex, Utterance, read_manifest, write_jsonl

pytestmark = pytest.mark.unit

LINE = {
    "utterance_id": "U_1",
    "child_id": "C_1",
    "session_id": "S_1",
    "audio_path": "audio/U_1.flac",
    "audio_duration_sec": 1.5,
    "age_bucket": "3-4",
    "md5_hash": "d41d8cd98f00b204e9800998ecf8427e",
    "filesize_bytes": 10,
    "orthographic_text": "a red ball",
}


def write(path: Path, *lines: str | dict[str, Any]) -> Path:
    """
    Write lines as they are, and objects as JSON.
    """
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), encoding="utf-8")
    return path


def test_a_line_of_the_contest_reads_as_it_is(tmp_path: Path) -> None:
    """
    All fields of the contest's manifest arrive, and go out again in as_line.
    """
    (utterance,) = read_manifest(write(tmp_path / "m.jsonl", LINE))

    assert utterance.as_line() == LINE


def test_all_problems_come_in_one_message_with_their_lines(tmp_path: Path) -> None:
    """
    Whoever mends a manifest of 100,000 lines wants to start again once.
    """
    path = write(
        tmp_path / "m.jsonl",
        LINE,
        '{"utterance_id": "U_2", ',
        {key: value for key, value in LINE.items() if key != "child_id"} | {"utterance_id": "U_3"},
        LINE,
        LINE | {"utterance_id": "U_5", "age_bucket": "13+"},
        json.dumps(LINE | {"utterance_id": "U_6", "audio_duration_sec": math.nan}),
        LINE | {"utterance_id": "U_7", "filesize_bytes": "many"},
        "[1, 2]",
    )

    with pytest.raises(ManifestError) as caught:
        read_manifest(path)

    message = str(caught.value)
    assert "7 problems in" in message
    for place in (
        "m.jsonl, line 2: broken JSON",
        "m.jsonl, line 3: field child_id is missing",
        "U_1: the id stands 2 times",
        "m.jsonl, line 5: age_bucket '13+' is none of 3-4, 5-7, 8-11, 12+, unknown",
        "m.jsonl, line 6: audio_duration_sec nan must be a number",
        "m.jsonl, line 7: filesize_bytes 'many' must be a number",
        "m.jsonl, line 8: not a JSON object",
    ):
        assert place in message


@pytest.mark.parametrize("field", ["orthographic_text", "utterance_id", "child_id", "audio_path"])
def test_half_a_character_is_refused_with_its_line(field: str, tmp_path: Path) -> None:
    """
    JSON can spell a lone surrogate, and nothing that is written later can hold it; a whole pair is one character.
    """
    whole = json.dumps(LINE | {field: "red \U0001f388"})
    read_manifest(write(tmp_path / "whole.jsonl", whole))
    with pytest.raises(ManifestError, match=rf"m.jsonl, line 2: {field} 'red .ud83c' holds half a character"):
        read_manifest(write(tmp_path / "m.jsonl", LINE, whole.replace("\\udf88", "").replace("U_1", "U_2")))


def test_many_problems_are_counted_not_printed(tmp_path: Path) -> None:
    """
    Ten thousand broken lines do not fill the terminal.
    """
    with pytest.raises(ManifestError) as caught:
        read_manifest(write(tmp_path / "m.jsonl", *["{"] * 10_000))

    assert "… and 9980 more" in str(caught.value)
    assert len(str(caught.value)) < 5_000


@pytest.mark.parametrize(("content", "word"), [(None, "can't read"), (b"\xff\xfe\x00", "UTF-8"), (b"", "no utterances")])
def test_a_file_that_is_none_is_refused(content: bytes | None, word: str, tmp_path: Path) -> None:
    """
    A missing manifest, a binary file and an empty one are each named as what they are.
    """
    path = tmp_path / "m.jsonl"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ManifestError, match=word):
        read_manifest(path)


def test_an_id_in_two_manifests_is_a_duplicate(tmp_path: Path) -> None:
    """
    Several manifests are one: ids must be unique across them.
    """
    with pytest.raises(ManifestError, match="U_1: the id stands 2 times"):
        read_manifest([write(tmp_path / "a.jsonl", LINE), write(tmp_path / "b.jsonl", LINE)])


def test_audio_without_transcripts_reads_where_labels_are_not_needed(tmp_path: Path) -> None:
    """
    A test set has no texts; prediction reads it, training refuses it.
    """
    path = write(tmp_path / "m.jsonl", {"utterance_id": "U_1", "audio_path": "audio/U_1.flac"})

    assert read_manifest(path, required=REQUIRED) == [Utterance("U_1", "audio/U_1.flac")]
    with pytest.raises(ManifestError, match="child_id is missing"):
        read_manifest(path, required=LABELLED)


lines = strategies.fixed_dictionaries(
    {
        "utterance_id": strategies.text(min_size=1),
        "audio_path": strategies.text(min_size=1),
        "child_id": strategies.text(min_size=1),
    },
    optional={
        "orthographic_text": strategies.text(min_size=1),
        "age_bucket": strategies.sampled_from(AGE_BUCKETS),
        "audio_duration_sec": strategies.floats(0, 1e6),
        "filesize_bytes": strategies.integers(0, 10**12),
    },
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(strategies.lists(lines, min_size=1, max_size=8, unique_by=lambda line: line["utterance_id"]))
def test_what_is_written_reads_back(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    """
    Any text survives: quotes, line separators, emoji, right-to-left, control characters.
    """
    path = tmp_path / "m.jsonl"
    write_jsonl(path, records)

    assert [utterance.as_line() for utterance in read_manifest(path, required=REQUIRED)] == [
        Utterance(**record).as_line() for record in records
    ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(strategies.lists(strategies.binary(max_size=60), max_size=6))
def test_no_input_ends_in_anything_but_a_manifest_error(tmp_path: Path, junk: list[bytes]) -> None:
    """
    Any bytes are either a manifest or refused as none.
    """
    path = tmp_path / "m.jsonl"
    path.write_bytes(b"\n".join(junk))

    with pytest.raises(ManifestError):
        read_manifest(path)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """
    Writing fails as a StorageError that names the file, and what was there is untouched.
    """
    path = tmp_path / "m.jsonl"
    path.write_text("old", encoding="utf-8")
    (tmp_path / "m.jsonl.tmp").symlink_to("/dev/full")

    with pytest.raises(StorageError, match=r"m\.jsonl: No space left"):
        write_jsonl(path, [LINE])
    assert path.read_text(encoding="utf-8") == "old"


def test_audio_is_found_by_name_over_all_folders(tmp_path: Path) -> None:
    """
    audio/U_2.flac of the manifest lies in audio_1/deep/U_2.flac.
    """
    for place in ("audio_0/U_1.flac", "audio_1/deep/U_2.flac"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    index = AudioIndex([tmp_path / "audio_0", tmp_path / "audio_1"])

    assert index.find(Utterance("U_2", "audio/U_2.flac")) == tmp_path / "audio_1/deep/U_2.flac"
    assert index.find(Utterance("U_3", "audio/U_3.flac")) is None


def test_a_name_in_two_folders_is_refused(tmp_path: Path) -> None:
    """
    Guessing which of two files is meant would train on the wrong words.
    """
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "U_1.flac").touch()
    index = AudioIndex([tmp_path / "a", tmp_path / "b"])

    with pytest.raises(ManifestError, match=r"U_1\.flac lies in two places"):
        index.find(Utterance("U_1", "audio/U_1.flac"))


def test_folders_that_overlap_are_scanned_once(tmp_path: Path) -> None:
    """
    Giving a folder and its sub-folder, or one twice through a link, is no duplicate.
    """
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "U_1.flac").touch()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    index = AudioIndex([tmp_path / "a", tmp_path / "a" / "b", tmp_path / "link"])

    assert index.find(Utterance("U_1", "U_1.flac")) == tmp_path / "a" / "b" / "U_1.flac"


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """
    A mistyped --audio-dir is not an empty one.
    """
    with pytest.raises(ManifestError, match="no such audio folder"):
        AudioIndex([tmp_path / "nowhere"])
