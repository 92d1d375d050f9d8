"""
Which GPUs can be had where, at what price: the catalog's answer, in the order in which they are asked for.

A network volume lives in one data centre, and a pod that has it runs there. So the data centres to choose from are those
of the volumes in NETWORK_VOLUME_ID.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from kidspeech.errors import CapacityError, SettingsError
from kidspeech.runpod.models import GpuType, NetworkVolume

T = TypeVar("T")
P = TypeVar("P")
CUDA_TAG = re.compile(r"cu(\d{2})(\d)")


@dataclass(frozen=True)
class Candidate:
    """
    A kind of machine to ask for, in one data centre.
    """

    gpu: str
    data_center: str
    price: float
    stock: str
    wish: int
    """Its place in the user's order."""


@dataclass(frozen=True)
class Offer:
    """
    A line of the catalog, for people: memory in GB, dollars an hour.
    """

    id: str
    data_center: str
    gb: int
    dollars: float
    stock: str


def offers(catalog: Sequence[GpuType], volumes: Sequence[NetworkVolume]) -> list[Offer]:
    """
    Return every type in the volumes' data centres, those with stock first, then the cheap ones.
    """
    centers = list(dict.fromkeys(volume.data_center for volume in volumes))
    found = [Offer(g.id, center, g.memory, g.price.secure, g.stock(center)) for center in centers for g in catalog]
    return sorted(found, key=lambda offer: (offer.stock == "NONE", offer.dollars))


def choose(catalog: Sequence[GpuType], wanted: Sequence[str], volume: NetworkVolume) -> tuple[Candidate, ...]:
    """
    Return the candidates in the user's order, those with stock first.

    The catalog's stock is a hint of minutes ago, so a type that it says is gone is still asked for, last.

    Raises:
        SettingsError: no such GPU type.
    """
    by_id = {name.lower(): gpu for gpu in catalog for name in (gpu.id, gpu.name)}
    unknown = [name for name in wanted if name.lower() not in by_id]
    if unknown or not wanted:
        names = ", ".join(sorted(f'"{gpu.id}"' for gpu in catalog))
        msg = f"GPU_TYPE {', '.join(unknown) or 'is empty'}: the catalog has {names}"
        raise SettingsError(msg)
    center = volume.data_center.upper()  # lower case is accepted by the API and breaks things later
    found = [by_id[name.lower()] for name in wanted]
    all_of_them = [Candidate(gpu.id, center, gpu.price.secure, gpu.stock(center), n) for n, gpu in enumerate(found)]
    return tuple(sorted(all_of_them, key=lambda candidate: candidate.stock == "NONE"))


def rank(candidates: Sequence[Candidate]) -> int:
    """
    Return how soon a data centre is asked: by the first of the user's types that it has in stock.
    """
    return min((c.wish for c in candidates if c.stock != "NONE"), default=len(candidates))


def first_that_has_one(places: Sequence[P], ask: Callable[[P], T]) -> T:
    """
    Return the answer of the first place that has capacity.

    Raises:
        CapacityError: none has; with what each said.
    """
    refusals = []
    for place in places:
        try:
            return ask(place)
        except CapacityError as error:
            refusals.append(str(error))
    raise CapacityError("\n".join(refusals))


def no_capacity(refusals: Sequence[str], volume: NetworkVolume) -> CapacityError:
    """
    Return the error that says who was asked and what each said.
    """
    lines = [f"no GPU to be had in {volume.data_center}, where the volume {volume.name} is:", *dict.fromkeys(refusals)]
    lines += ["name more types with --gpu or in GPU_TYPE (see `kidspeech runpod gpus`), or a volume in another data centre"]
    lines += ["in NETWORK_VOLUME_ID, or try later; nothing was started"]
    return CapacityError("\n  ".join(lines))


def cuda_of(image: str) -> str | None:
    """
    Return the CUDA version an image's name tells ("12.8" of cu1281), which the host's driver must know.
    """
    match = CUDA_TAG.search(image.rpartition(":")[2])
    return f"{match[1]}.{match[2]}" if match else None
