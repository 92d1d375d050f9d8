"""
The feature cache: what was once computed from a file's content, so that no later run opens the audio again.

A cache folder holds one sub-folder per feature settings, named by their hash, and in it shards. Mapping the shards of
100,000 clips costs no more than reading their small columns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from kidspeech.clips import Clip
from kidspeech.errors import writing
from kidspeech.features import Featurizer
from kidspeech.folders import locked
from kidspeech.progress import Progress
from kidspeech.reading import UNREAD
from kidspeech.shards import Row, read_index
from kidspeech.workers import compute


class FeatureCache:
    """
    The shards of one featurizer in one cache folder.
    """

    def __init__(self, folder: Path, featurizer: Featurizer) -> None:
        settings = json.dumps(featurizer.settings, sort_keys=True)
        self.featurizer = featurizer
        self.folder = folder / f"{featurizer.settings['kind']}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"

    def rows(self, clips: Sequence[Clip], progress: Progress, workers: int) -> list[Row]:
        """
        Return one row per clip, computing those that are not there yet.

        Raises:
            BusyError: another process computes into this cache.
            StorageError: the disk is full; finished shards stay and are used next time.
        """
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        known = self._known()
        if not all(_settled(known.get(clip)) for clip in clips):
            with locked(self.folder / "lock", f"the feature cache {self.folder}"):
                known = self._known()
                missing = [clip for clip in dict.fromkeys(clips) if not _settled(known.get(clip))]
                compute(missing, self.featurizer, self.folder, progress, workers)
            known = self._known()
        return [known[clip] for clip in clips]

    def _known(self) -> dict[Clip, Row]:
        known: dict[Clip, Row] = {}
        for path in sorted(self.folder.glob("*.arrow")):
            for clip, row in read_index(path):
                if not _settled(known.get(clip)):
                    known[clip] = row
        return known


def _settled(row: Row | None) -> bool:
    # what could not be read may be there again: it is tried anew whenever the dataset is made anew
    return row is not None and not (row.small["problem"] or "").startswith(UNREAD)
