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
from kidspeech.errors import DatasetError, InputError, writing
from kidspeech.launcher import train_words
from kidspeech.runpod.api import RunPod
from kidspeech.runpod.catalog import Candidate, choose, rank
from kidspeech.runpod.clock import MAX_HOURS
from kidspeech.runpod.models import RUN, NetworkVolume
from kidspeech.runpod.places import CACHE, MODELS, Places, data_key, job_key, run_key
from kidspeech.runpod.settings import Settings


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
        The run's name.
        """
        return run_of(self.order)

    @property
    def run_key(self) -> str:
        """
        The run folder on the volume.
        """
        return run_key(self.run)

    @property
    def job_key(self) -> str:
        """
        The folder beside it with the log and the owners.
        """
        return job_key(self.run)

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
        weights = [f"model.pretrained={self.places.path(key)}" for key in keys.values() if key.startswith(f"{MODELS}/")]
        # The image turns this on for a package that a fresh environment lacks, and downloads then fail.
        hub = [f"HF_HOME={self.places.path(CACHE)}/huggingface", "HF_HUB_ENABLE_HF_TRANSFER=0"]
        words = train_words(
            recipe,
            self.places.path(keys[self.order.data]),
            self.places.path(self.run_key),
            [*self.order.overrides, *weights],
            debug=self.order.debug,
            force_restart=restart,
        )
        return ["env", *hub, *kidspeech, "train", *words]


def make_plans(order: Order, settings: Settings, api: RunPod) -> tuple[Plan, ...]:
    """
    Check the order, the keys, the volumes and what GPUs are there, and return a plan for each data centre to try.

    Raises:
        InputError: the recipe, the dataset, the run folder's name or the ssh key can't be used.
        ApiError: RunPod does not accept the key, or has no such volume.
        SettingsError: RunPod has no such type of GPU.
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
    return plans_of(order, settings, api, uploads)


def plans_of(order: Order, settings: Settings, api: RunPod, uploads: tuple[tuple[Path, str], ...] = ()) -> tuple[Plan, ...]:
    """
    Return a plan for each of the settings' volumes, those in data centres with the best GPU in stock first.

    A run stays on the volume that it began on, because its checkpoints are there: then that is the only one.
    """
    ids = _home(order, settings, api) or settings.volume_ids
    catalog, wanted = api.gpus(), order.gpus or settings.gpu_types
    plans = [
        Plan(order, settings, volume, choose(catalog, wanted, volume), uploads)
        for volume in (api.volume(volume_id) for volume_id in ids)
    ]
    return tuple(sorted(plans, key=lambda plan: rank(plan.candidates)))


def _home(order: Order, settings: Settings, api: RunPod) -> tuple[str, ...]:
    """
    Return the volume that a run began on: its pod has it, or this project's folder remembers.
    """
    if len(settings.volume_ids) == 1:
        return settings.volume_ids
    pods = [pod for pod in api.pods() if pod.ours and pod.env.get(RUN) == run_of(order)]
    known = home_of(settings, run_of(order))
    for volume_id in settings.volume_ids:
        if any(pod.holds(volume_id) for pod in pods) or (known == volume_id and not order.force_restart):
            return (volume_id,)
    return ()


def run_of(order: Order) -> str:
    """
    Return the run's name: of its folder here and on the volume, of its pods and its lock.
    """
    return order.out.resolve().name


def home_of(settings: Settings, run: str) -> str:
    """
    Return the id of the volume that remember_home wrote down; "" where it did not.
    """
    file = _home_file(settings, run)
    return file.read_text(encoding="utf-8").strip() if file.is_file() else ""


def remember_home(plan: Plan) -> None:
    """
    Write down which volume a run's checkpoints lie on, for the next call of the same command.

    Raises:
        StorageError: the project's folder can't be written.
    """
    file = _home_file(plan.settings, plan.run)
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file.write_text(f"{plan.volume.id}\n", encoding="utf-8")


def _home_file(settings: Settings, run: str) -> Path:
    return settings.folder / f"{run}.volume"


def _uploads(order: Order, recipe: Recipe) -> tuple[tuple[Path, str], ...]:
    if not order.data.is_dir() or not any(order.data.iterdir()):
        msg = f"no dataset at {order.data}: make one with `kidspeech prepare`"
        raise DatasetError(msg)
    found = [(order.data, data_key(_name(order.data)))]
    weights = Path(recipe.model.pretrained).expanduser() if recipe.model.pretrained else None
    if weights is not None and weights.is_dir():
        found += [(weights, f"{MODELS}/{_name(weights)}")]
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
