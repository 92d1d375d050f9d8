"""
Whether RunPod can be used from here, checked without starting anything.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kidspeech.errors import KidspeechError
from kidspeech.runpod.api import RunPod
from kidspeech.runpod.plan import choose
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


def examine(settings: Settings, api: RunPod) -> Iterator[Check]:
    """
    Yield a check of each thing that a training on a pod needs, all for free.
    """
    yield Check("settings", not settings.warnings, "; ".join(settings.warnings) or str(settings.path))
    yield _tried("ssh key", lambda: settings.public_key.split()[0])
    for tool in ("ssh", "rsync"):
        yield Check(tool, shutil.which(tool) is not None, shutil.which(tool) or "not found: install it")
    yield _tried("API key and volume", lambda: _volume(settings, api))
    yield _tried("GPUs", lambda: _gpus(settings, api))
    yield (
        _tried("S3", lambda: _s3(settings, api))
        if settings.s3
        else Check("S3", None, "no keys; rsync through the pod instead")
    )
    yield _tried("pods", lambda: _pods(settings, api))


def _tried(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, look())
    except KidspeechError as error:
        return Check(name, False, str(error))


def _volume(settings: Settings, api: RunPod) -> str:
    volume = api.volume(settings.volume_id)
    return f"{volume.name}, {volume.size} GB in {volume.data_center}, about ${volume.size * 0.07:.2f} a month"


def _gpus(settings: Settings, api: RunPod) -> str:
    candidates = choose(api.gpus(), settings.gpu_types, api.volume(settings.volume_id))
    return ", ".join(f"{c.gpu}: stock {c.stock.lower()}, ${c.price:.2f}/h" for c in candidates)


def _s3(settings: Settings, api: RunPod) -> str:
    assert settings.s3 is not None
    found = open_volume(settings.s3, api.volume(settings.volume_id)).folder("")
    return f"{len(found)} entries at the top of the volume"


def _pods(settings: Settings, api: RunPod) -> str:
    pods = Fleet(settings, api).ours()
    return ", ".join(f"{pod.name} {pod.status.lower()} ${pod.cost:.2f}/h" for pod in pods) or "none, nothing is billed"
