"""
The audio files of a manifest, as the file system knows them: found and looked at, not opened.

Imports nothing heavy, so that a second `prepare` with nothing changed is over before torch would be imported.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kidspeech.errors import ManifestError
from kidspeech.manifest import AudioIndex, Utterance


@dataclass(frozen=True, slots=True)
class Clip:
    """
    A file as the file system knows it, without opening it.
    """

    path: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> Clip:
        """
        Look the file up.

        Raises:
            OSError: it is gone, may not be looked at, or is a pipe, a device or something else that can't be read to an end.
            UnicodeEncodeError: its path is not UTF-8, and a column of strings can't hold it.
        """
        str(path).encode()
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return cls(str(path), status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class Skipped:
    """
    An utterance that can't be used, and why.
    """

    utterance_id: str
    audio: str
    reason: str


def locate(utterances: Sequence[Utterance], folders: Sequence[Path]) -> tuple[dict[str, Clip], list[Skipped]]:
    """
    Return the file of each utterance, by id, and the utterances whose file is not there.

    Raises:
        ManifestError: a folder is missing; or none of the files is there, so that the folders must be wrong.
    """
    index = AudioIndex(folders)
    clips: dict[str, Clip] = {}
    skipped: list[Skipped] = []
    for utterance in utterances:
        path = index.find(utterance)
        try:
            if path is None:
                skipped.append(Skipped(utterance.utterance_id, utterance.audio_path, "audio not found in any folder"))
            else:
                clips[utterance.utterance_id] = Clip.of(path)
        except OSError as error:
            skipped.append(Skipped(utterance.utterance_id, str(path), f"audio can't be read: {error.strerror}"))
        except UnicodeEncodeError:
            skipped.append(Skipped(utterance.utterance_id, ascii(str(path)), "audio can't be read: its path is not UTF-8"))
    if not clips:
        places = ", ".join(map(str, folders))
        msg = f"none of the {len(utterances)} audio files lies in {places}; give their folders with --audio-dir"
        raise ManifestError(msg)
    return clips, skipped
