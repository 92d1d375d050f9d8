"""
What will be done, checked as far as that is free, with what it may cost. Nothing here starts or changes anything.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kidspeech.config import Recipe, load_recipe
from kidspeech.errors import CapacityError, DatasetError, InputError, SettingsError
from kidspeech.runpod.api import RunPod
from kidspeech.runpod.models import GpuType, NetworkVolume
from kidspeech.runpod.settings import Settings

MAX_HOURS = 12.0
CUDA_TAG = re.compile(r"cu(\d{2})(\d)")


@dataclass(frozen=True)
class Order:
    """
    What the user asks for: `kidspeech train RECIPE --data DATA --out RUN [key=value ...] --remote runpod`.
    """

    recipe: str
    data: Path
    out: Path
    overrides: tuple[str, ...] = ()
    debug: bool = False
    force_restart: bool = False
    gpus: tuple[str, ...] = ()
    max_hours: float = MAX_HOURS


@dataclass(frozen=True)
class Candidate:
    """
    A kind of machine to ask for, in one data centre.
    """

    gpu: str
    data_center: str
    price: float
    stock: str


@dataclass(frozen=True)
class Places:
    """
    Where things lie: keys on the volume, and with the mount before them paths in a pod.
    """

    mount: str

    def path(self, key: str) -> str:
        """
        Return the path in a pod of a key on the volume.
        """
        return f"{self.mount}/{key}"


@dataclass(frozen=True)
class Plan:
    """
    An order that can be carried out.
    """

    order: Order
    settings: Settings
    volume: NetworkVolume
    candidates: tuple[Candidate, ...]
    uploads: tuple[tuple[Path, str], ...]
    """Folders here, and their keys on the volume."""

    @property
    def run(self) -> str:
        """
        The run's name: of its folder here and on the volume, of its pods and its lock.
        """
        return self.order.out.resolve().name

    @property
    def run_key(self) -> str:
        """
        The run folder on the volume.
        """
        return f"kidspeech/runs/{self.run}"

    @property
    def job_key(self) -> str:
        """
        The folder beside it with the log and the owners.
        """
        return f"kidspeech/jobs/{self.run}"

    @property
    def places(self) -> Places:
        """
        Turn keys into paths.
        """
        return Places(self.settings.mount)

    @property
    def ceiling(self) -> float:
        """
        What the GPU can cost at most, in dollars: the dearest candidate until the deadline and five minutes.
        """
        return max(c.price for c in self.candidates) * (self.order.max_hours + 5 / 60)

    @property
    def fingerprint(self) -> str:
        """
        A name for what is trained, so that a finished run of something else is not taken for this one.
        """
        words = [_content(self.order.recipe), *self.order.overrides, str(self.order.debug), *(key for _, key in self.uploads)]
        return hashlib.sha256("\0".join(words).encode()).hexdigest()[:16]

    def command(self, kidspeech: Sequence[str], recipe: str, *, restart: bool) -> list[str]:
        """
        Return the command that trains on the pod.

        Args:
            kidspeech: words that run the program there.
            recipe: the recipe there: a shipped name, or the path of the file that was sent.
            restart: whether to begin anew.
        """
        keys = dict(self.uploads)
        data = self.places.path(keys[self.order.data])
        flags = [flag for flag, given in (("--debug", self.order.debug), ("--force-restart", restart)) if given]
        weights = [f"model.pretrained={self.places.path(key)}" for key in keys.values() if key.startswith("kidspeech/models/")]
        out = self.places.path(self.run_key)
        # The image turns this on for a package that a fresh environment lacks, and downloads then fail.
        hub = [f"HF_HOME={self.places.path('kidspeech/cache/huggingface')}", "HF_HUB_ENABLE_HF_TRANSFER=0"]
        return [
            "env",
            *hub,
            *kidspeech,
            "train",
            recipe,
            "--data",
            data,
            "--out",
            out,
            *flags,
            *self.order.overrides,
            *weights,
        ]


def make_plan(order: Order, settings: Settings, api: RunPod) -> Plan:
    """
    Check the order, the keys, the volume and what GPUs are there.

    Raises:
        InputError: the recipe, the dataset, the run folder's name or the ssh key can't be used.
        ApiError: RunPod does not accept the key, or has no such volume.
        CapacityError: the volume's data centre has never had one of these GPUs.
    """
    recipe = load_recipe(order.recipe, order.overrides)
    uploads = _uploads(order, recipe)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", order.out.resolve().name):
        msg = f"--out {order.out}: the folder's name also names the run on the volume; use letters, digits and . _ -"
        raise InputError(msg)
    if not order.max_hours > 0:
        msg = "--max-hours must be above 0"
        raise InputError(msg)
    _ = settings.public_key  # raises where there is none
    volume = api.volume(settings.volume_id)
    candidates = choose(api.gpus(), order.gpus or settings.gpu_types, volume)
    return Plan(order, settings, volume, candidates, uploads)


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
    all_of_them = [Candidate(gpu.id, center, gpu.price.secure, gpu.stock(center)) for gpu in found]
    return tuple(sorted(all_of_them, key=lambda candidate: candidate.stock == "NONE"))


def cuda_of(image: str) -> str | None:
    """
    Return the CUDA version an image's name tells ("12.8" of cu1281), which the host's driver must know.
    """
    match = CUDA_TAG.search(image.rpartition(":")[2])
    return f"{match[1]}.{match[2]}" if match else None


def no_capacity(refusals: Sequence[str], plan: Plan) -> CapacityError:
    """
    Return the error that says who was asked and what each said.
    """
    lines = [f"no GPU to be had in {plan.volume.data_center}, where the volume is:", *dict.fromkeys(refusals)]
    lines += ["name more types with --gpu or in GPU_TYPE (see `kidspeech runpod gpus`), or try later; nothing was started"]
    return CapacityError("\n  ".join(lines))


def _uploads(order: Order, recipe: Recipe) -> tuple[tuple[Path, str], ...]:
    if not order.data.is_dir() or not any(order.data.iterdir()):
        msg = f"no dataset at {order.data}: make one with `kidspeech prepare`"
        raise DatasetError(msg)
    found = [(order.data, f"kidspeech/data/{_name(order.data)}")]
    weights = Path(recipe.model.pretrained).expanduser() if recipe.model.pretrained else None
    if weights is not None and weights.is_dir():
        found += [(weights, f"kidspeech/models/{_name(weights)}")]
    return tuple(found)


def _name(folder: Path) -> str:
    name = folder.resolve().name
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        return name
    msg = f"{folder}: the folder's name becomes a folder on the volume; use letters, digits and . _ -"
    raise InputError(msg)


def _content(recipe: str) -> str:
    path = Path(recipe)
    return path.read_text(encoding="utf-8") if path.is_file() else recipe
