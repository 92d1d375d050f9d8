"""
Manifests: the only reader and writer of the contest's JSONL files, and the index that finds their audio.

A manifest holds one JSON object a line, with the fields of `Utterance`. `audio_path` reads "audio/<name>.flac" in the
contest's files while the audio lies in audio_0/, audio_1/ …: a file is looked up by its name, over all given folders.
"""

from __future__ import annotations

import json
import math
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from kidspeech.errors import ManifestError, writing

AgeBucket = Literal["3-4", "5-7", "8-11", "12+", "unknown"]
AGE_BUCKETS: tuple[str, ...] = get_args(AgeBucket)
TextField = Literal["orthographic_text", "phonetic_text"]
TEXT_FIELDS: tuple[TextField, ...] = get_args(TextField)  # these may be empty: nothing was said
SHOWN = 20  # problems spelled out in one message; the rest are counted


@dataclass(frozen=True, slots=True)
class Utterance:
    """
    One line of a manifest. A field the file does not have is "" or None.
    """

    utterance_id: str
    audio_path: str
    child_id: str = ""
    session_id: str = ""
    age_bucket: str = "unknown"
    orthographic_text: str = ""
    phonetic_text: str = ""
    audio_duration_sec: float | None = None
    md5_hash: str | None = None
    filesize_bytes: int | None = None
    corpus: str = ""

    def as_line(self) -> dict[str, Any]:
        """
        Return the fields that are known, in the order above.
        """
        return {key: value for key, value in asdict(self).items() if value not in (None, "")}


REQUIRED: tuple[str, ...] = ("utterance_id", "audio_path")
LABELLED: tuple[str, ...] = (*REQUIRED, "child_id", "orthographic_text")


def read_manifest(
    paths: Path | Sequence[Path], *, required: Sequence[str] = LABELLED, corpora: Mapping[Path, str] | None = None
) -> list[Utterance]:
    """
    Read one or several manifests as one.

    Args:
        paths: JSONL files.
        required: fields every line must have; LABELLED for training, REQUIRED for audio without transcripts.
        corpora: the corpus of each file; where not given, a line's own field "corpus" says it, or nothing.

    Raises:
        ManifestError: with every problem of every file, each with its line.
    """
    files = [paths] if isinstance(paths, Path) else list(paths)
    problems: list[str] = []
    utterances: list[Utterance] = []
    places: list[str] = []
    for path in files:
        named = {"corpus": corpora[path]} if corpora else {}
        for place, record in read_jsonl(path, problems):
            problems += [f"{place}: {what}" for what in _problems(record, required)]
            utterances.append(_utterance(record | named))
            places.append(place)
    problems += _repeated(utterances, places)
    if problems:
        raise ManifestError(_report(files, problems))
    if not utterances:
        msg = f"{', '.join(map(str, files))}: no utterances; a manifest has one JSON object a line"
        raise ManifestError(msg)
    return utterances


def read_jsonl(path: Path, problems: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """
    Yield "file, line N" and the object of every line that is one; word the others in *problems*.

    Raises:
        ManifestError: the file is missing or not text.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                place = f"{path}, line {number}"
                if not line.strip():
                    continue
                record = _decode(line)
                if isinstance(record, dict):
                    yield place, record
                else:
                    problems.append(f"{place}: {record if isinstance(record, str) else 'not a JSON object'}")
    except UnicodeDecodeError as error:
        msg = f"{path} is not UTF-8 text (byte {error.start}); give a JSONL manifest"
        raise ManifestError(msg) from error
    except OSError as error:
        msg = f"can't read {path}: {error.strerror}; check the path"
        raise ManifestError(msg) from error


def write_jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """
    Write *records* one a line, whole or not at all.

    Raises:
        StorageError: the disk is full or can't be written.
    """
    aside = path.with_name(f"{path.name}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("w", encoding="utf-8") as out:
            out.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        aside.replace(path)


class AudioIndex:
    """
    Where the audio of manifests lies: one scan over all folders, then a look-up by file name.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        """
        Raises:
            ManifestError: a folder does not exist.
        """
        missing = [str(folder) for folder in folders if not folder.is_dir()]
        if missing:
            msg = f"no such audio folder: {', '.join(missing)}"
            raise ManifestError(msg)
        self.folders = list(folders)
        self._paths: dict[str, Path] = {}
        self._twice: dict[str, Path] = {}
        self._composed: dict[str, str] = {}
        for path in _files(self.folders):
            first = self._paths.setdefault(path.name, path)
            if first is not path:
                self._twice.setdefault(path.name, path)
            if not path.name.isascii():
                self._composed.setdefault(unicodedata.normalize("NFC", path.name), path.name)

    def find(self, utterance: Utterance) -> Path | None:
        """
        Return the file of *utterance*, or None where no folder has one of its name.

        Raises:
            ManifestError: two folders have it, and the name alone can't tell which is meant.
        """
        name = Path(utterance.audio_path).name
        if name not in self._paths:  # macOS spells é as two characters, e and its accent, most others as one
            name = self._composed.get(unicodedata.normalize("NFC", name), name)
        if name in self._twice:
            msg = f"{name} lies in two places, {self._paths[name]} and {self._twice[name]}; give only the right folder"
            raise ManifestError(msg)
        return self._paths.get(name)


def _files(folders: Sequence[Path]) -> Iterator[Path]:
    # os.walk reads a folder of 100,000 files in a fifth of a second where Path.rglob takes two
    seen: set[str] = set()
    for folder in folders:
        for parent, _, names in os.walk(os.path.realpath(folder)):
            if parent not in seen:
                seen.add(parent)
                yield from (Path(parent, name) for name in names)


def _decode(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        return f"broken JSON ({error.msg} at column {error.colno})"


def _problems(record: Mapping[str, Any], required: Sequence[str]) -> list[str]:
    found = [f"field {key} is missing" for key in required if record.get(key) is None]
    found += [f"field {key} is empty" for key in required if key not in TEXT_FIELDS and record.get(key) == ""]
    for field in fields(Utterance):
        value = record.get(field.name)
        if value is not None and (wrong := _CHECKS[field.name](value)):
            found.append(f"{field.name} {value!r} {wrong}")
    return found


def _text(value: Any) -> str | None:
    if not isinstance(value, str):
        return "must be a text"
    try:  # JSON may spell one half of a character of two ("\\ud800"); neither a file nor Arrow can hold it
        value.encode()
    except UnicodeEncodeError:
        return "holds half a character, which was cut in two when the text was"
    return None


def _bucket(value: Any) -> str | None:
    return None if value in AGE_BUCKETS else f"is none of {', '.join(AGE_BUCKETS)}"


def _seconds(value: Any) -> str | None:
    fine = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    return None if fine else "must be a number of seconds, 0 or more"


def _bytes(value: Any) -> str | None:
    return None if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else "must be a number of bytes"


_CHECKS: dict[str, Callable[[Any], str | None]] = {
    **{field.name: _text for field in fields(Utterance)},
    "age_bucket": _bucket,
    "audio_duration_sec": _seconds,
    "filesize_bytes": _bytes,
}


def _utterance(record: Mapping[str, Any]) -> Utterance:
    known = {field.name for field in fields(Utterance)}
    given = {key: value for key, value in record.items() if key in known and value is not None}
    return Utterance(**{"utterance_id": "", "audio_path": "", **given})


def _repeated(utterances: Sequence[Utterance], places: Sequence[str]) -> Iterator[str]:
    counts = Counter(utterance.utterance_id for utterance in utterances if utterance.utterance_id)
    found: dict[str, list[str]] = {name: [] for name, count in counts.items() if count > 1}
    if found:
        for utterance, place in zip(utterances, places, strict=True):
            found.get(utterance.utterance_id, []).append(place)
    return (f"{name}: the id stands {len(here)} times ({'; '.join(here[:3])})" for name, here in found.items())


def _report(files: Sequence[Path], problems: Sequence[str]) -> str:
    rest = [f"… and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    head = (
        f"{len(problems)} problem{'s' * (len(problems) > 1)} in {', '.join(map(str, files))}; mend the lines and start again:"
    )
    return "\n  ".join([head, *problems[:SHOWN], *rest])
