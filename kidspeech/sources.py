"""
Where utterances come from: manifests and audio folders, of one corpus or of several by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from kidspeech.clips import Clip, Skipped, locate
from kidspeech.data_config import Data
from kidspeech.errors import ManifestError, RecipeError
from kidspeech.manifest import Utterance, read_manifest

SHOWN = 5  # children named in one message; the rest are counted


@dataclass(frozen=True)
class Source:
    """
    A corpus: its name, "" for one that needs none, its manifests, and the folders of its audio.
    """

    name: str
    manifests: list[Path]
    audio_dirs: list[Path]


def sources_of(data: Data, manifests: Sequence[Path], audio_dirs: Sequence[Path]) -> list[Source]:
    """
    Return the corpora that a recipe names, or else the one that *manifests* and *audio_dirs* are.

    Raises:
        RecipeError: both are given, or neither.
    """
    if bool(data.corpora) == bool(manifests or audio_dirs) or (audio_dirs and not manifests):
        names = ", ".join(data.corpora)
        msg = (
            f"the recipe names its corpora ({names}): leave out --manifest and --audio-dir, or data.corpora"
            if data.corpora
            else "no manifest: give --manifest, or name corpora in the recipe, in data.corpora"
        )
        raise RecipeError(msg)
    if not data.corpora:
        return [Source("", list(manifests), list(audio_dirs) or _parents(manifests))]
    paths = {name: [Path(path) for path in corpus.manifests] for name, corpus in data.corpora.items()}
    return [
        Source(name, paths[name], [Path(folder) for folder in corpus.audio_dirs] or _parents(paths[name]))
        for name, corpus in data.corpora.items()
    ]


def gather(
    sources: Sequence[Source], shared_children: Literal["refuse", "merge", "separate"]
) -> tuple[list[Utterance], dict[str, Clip], list[Skipped]]:
    """
    Return the utterances of all *sources*, the file of each by id, and the utterances whose file is not there.

    Args:
        sources: from sources_of; audio of one name in two corpora is told apart by their folders.
        shared_children: what a child_id in two corpora means: an error, one child, or two, whose ids then begin with
            their corpus.

    Raises:
        ManifestError: a manifest can't be read, an id stands twice, a child in two corpora; a folder is missing.
    """
    corpora = {path: source.name for source in sources for path in source.manifests if source.name}
    utterances = read_manifest([path for source in sources for path in source.manifests], corpora=corpora)
    shared = {} if shared_children == "merge" else _shared(utterances)
    if shared and shared_children == "refuse":
        raise ManifestError(_refusal(shared))
    clips: dict[str, Clip] = {}
    skipped: list[Skipped] = []
    for source in sources:
        found, missing = locate([each for each in utterances if source.name in ("", each.corpus)], source.audio_dirs)
        clips |= found
        skipped += missing
    return [_separated(utterance) if utterance.child_id in shared else utterance for utterance in utterances], clips, skipped


def _parents(manifests: Sequence[Path]) -> list[Path]:
    return list(dict.fromkeys(path.parent for path in manifests))


def _shared(utterances: Sequence[Utterance]) -> dict[str, list[str]]:
    corpora: dict[str, dict[str, None]] = {}
    for utterance in utterances:
        corpora.setdefault(utterance.child_id, {})[utterance.corpus] = None
    return {child: list(found) for child, found in corpora.items() if len(found) > 1}


def _refusal(shared: dict[str, list[str]]) -> str:
    examples = ", ".join(f"{child} ({' and '.join(names)})" for child, names in list(shared.items())[:SHOWN])
    return (
        f"{len(shared)} children stand in several corpora: {examples}{' …' if len(shared) > SHOWN else ''}; "
        "if they are the same children, give data.shared_children=merge, else data.shared_children=separate"
    )


def _separated(utterance: Utterance) -> Utterance:
    return replace(utterance, child_id=f"{utterance.corpus}/{utterance.child_id}")
