"""
Whether RunPod can be used from here, checked without starting anything.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kidspeech.errors import KidspeechError
from kidspeech.runpod.api import RunPod
from kidspeech.runpod.catalog import choose
from kidspeech.runpod.models import NetworkVolume
from kidspeech.runpod.pods import Fleet
from kidspeech.runpod.settings import Settings
from kidspeech.runpod.volume import open_volume


@dataclass(frozen=True)
class Check:
    """
    One thing that was looked at.
    """

    name: str
    good: bool | None
    """None where it could not be looked at."""
    detail: str


NO_S3 = Check("S3", None, "no keys; rsync through the pod instead")
NOTHING = "none, nothing is billed"


def examine(settings: Settings, api: RunPod) -> Iterator[Check]:
    """
    Yield a check of each thing that a training on a pod needs, all for free.
    """
    yield Check("settings", not settings.warnings, "; ".join(settings.warnings) or str(settings.path))
    yield _tried("ssh key", lambda: settings.public_key.split()[0])
    for tool in ("ssh", "rsync"):
        yield Check(tool, shutil.which(tool) is not None, shutil.which(tool) or "not found: install it")
    fleet = Fleet(settings, api)
    for volume_id in settings.volume_ids:
        yield from _place(fleet, volume_id)
    yield _tried("pods", lambda: _pods(fleet))


def _tried(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, look())
    except KidspeechError as error:
        return Check(name, False, str(error))


def _place(fleet: Fleet, volume_id: str) -> Iterator[Check]:
    yield _tried("API key and volume", lambda: _volume(fleet.volume(volume_id)))
    yield _tried("GPUs", lambda: _gpus(fleet, volume_id))
    yield _tried("S3", lambda: _s3(fleet, volume_id)) if fleet.settings.s3 else NO_S3


def _volume(volume: NetworkVolume) -> str:
    return f"{volume.name}, {volume.size} GB in {volume.data_center}, about ${volume.size * 0.07:.2f} a month"


def _gpus(fleet: Fleet, volume_id: str) -> str:
    candidates = choose(fleet.api.gpus(), fleet.settings.gpu_types, fleet.volume(volume_id))
    return ", ".join(f"{c.gpu}: stock {c.stock.lower()}, ${c.price:.2f}/h" for c in candidates)


def _s3(fleet: Fleet, volume_id: str) -> str:
    assert fleet.settings.s3 is not None
    found = open_volume(fleet.settings.s3, fleet.volume(volume_id)).folder("")
    return f"{len(found)} entries at the top of the volume"


def _pods(fleet: Fleet) -> str:
    return ", ".join(f"{pod.name} {pod.status.lower()} ${pod.cost:.2f}/h" for pod in fleet.ours()) or NOTHING
