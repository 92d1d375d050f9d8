"""
What is in a folder, byte for byte: the list that travels with every upload and comes back with every run, in the form
that md5sum writes and checks.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kidspeech.errors import InputError
from kidspeech.progress import Progress, silent

NAME = ".pushed.md5"
"""Written last on the volume, so that a folder that has it is whole."""
PLAIN_KEY = re.compile(r"[A-Za-z0-9._/-]+")
LINE = re.compile(r"([0-9a-f]{32}) [ *](.+)")


@dataclass(frozen=True)
class Item:
    """
    One file of a folder.
    """

    path: str
    size: int
    md5: str


def scan(folder: Path, known: Path | None = None, progress: Progress = silent) -> list[Item]:
    """
    Return the files under *folder*, in order.

    Args:
        folder: what to read.
        known: file that remembers sums by size and time of change, so that 20 GB are not read at each start.
        progress: told of the bytes read.

    Raises:
        InputError: a file's name has characters that the volume's S3 address lists and then does not find.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not _skipped(path.relative_to(folder)))
    odd = [path for path in files if not PLAIN_KEY.fullmatch(path.relative_to(folder).as_posix())]
    if odd:
        msg = f"{odd[0]}: the volume takes only letters, digits and . _ - in names"
        raise InputError(msg)
    remembered, total, done = _remembered(known), sum(path.stat().st_size for path in files), 0
    items = []
    for path in files:
        items += [_item(folder, path, remembered)]
        done += items[-1].size
        progress("reading the dataset", done, total)
    if known is not None:
        known.parent.mkdir(parents=True, exist_ok=True)
        known.write_text(json.dumps(remembered), encoding="utf-8")
    return items


def write_sums(items: Iterable[Item]) -> bytes:
    """
    Return the list of *items* as md5sum writes it.
    """
    return "".join(f"{item.md5}  {item.path}\n" for item in items).encode()


def read_sums(content: bytes | str) -> dict[str, str]:
    """
    Return the sum of each path in a list; lines that are no such thing are left out.
    """
    text = content if isinstance(content, str) else content.decode(errors="replace")
    return {match[2]: match[1] for line in text.splitlines() if (match := LINE.fullmatch(line))}


def md5_of(path: Path) -> str:
    """
    Return a file's md5.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _skipped(inside: Path) -> bool:
    """
    Leave out what is not data: hidden files, keys among them, and what a program is still writing.
    """
    return any(part.startswith(".") for part in inside.parts) or inside.suffix in {".tmp", ".lock", ".part"}


def _item(folder: Path, path: Path, remembered: dict[str, str]) -> Item:
    stat = path.stat()
    key = f"{path}:{stat.st_size}:{stat.st_mtime_ns}"
    remembered.setdefault(key, "")
    remembered[key] = remembered[key] or md5_of(path)
    return Item(path.relative_to(folder).as_posix(), stat.st_size, remembered[key])


def _remembered(known: Path | None) -> dict[str, str]:
    try:
        found = json.loads(known.read_text(encoding="utf-8")) if known else {}
    except (OSError, ValueError):
        found = {}
    return found if isinstance(found, dict) else {}
