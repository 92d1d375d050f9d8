"""
What the device decides: arithmetic, whether to compile, and how much audio a micro-batch may hold.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from kidspeech import __version__
from kidspeech.config import Recipe, Train
from kidspeech.errors import writing
from kidspeech.folders import default_cache

CPU_SECONDS = 240.0  # of audio in a micro-batch on a CPU, where larger ones gain nothing
TRIALS = (60.0, 180.0)  # seconds of audio whose memory is measured; what a second costs is the slope between them
MOST_SECONDS = 600.0  # more at once gains nothing on any card yet seen, and costs memory that other shapes may need
RESERVE = 0.12  # of the card, for fragmentation, and for shapes that were not tried
COMPILE_STEPS = 5000  # compiling takes a minute and a half on an H200 (measured); what a step saves is not yet, so: long runs


def between_cpus() -> bool:
    """
    Return whether several processes share CPUs: accelerate takes them for strangers otherwise.
    """
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.cuda.is_available()


def precision(settings: Train) -> str:
    """
    Return accelerate's word for the recipe's arithmetic on this device.
    """
    wanted = settings.precision
    if wanted == "auto" and torch.cuda.is_available():
        wanted = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return wanted if wanted in ("bf16", "fp16") else "no"


def compiles(settings: Train, total: int, device: torch.device) -> bool:
    """
    Return whether a run of *total* steps compiles. By the whole run, so that one that is resumed does as it did.
    """
    if settings.compile == "auto":
        return device.type == "cuda" and total >= COMPILE_STEPS
    return settings.compile


def batch_seconds(recipe: Recipe, accelerator: Accelerator, attempt: Callable[[float], None]) -> float:
    """
    Return the seconds of padded audio that one micro-batch may hold.

    With "auto" on a GPU it is measured: *attempt* runs forward and backward at two sizes, memory grows linearly between
    them, and room is left for what the optimizer will take. The figure is remembered for this card and recipe.

    Args:
        recipe: sections model and train decide.
        accelerator: whose device is meant; over several devices the smallest figure holds.
        attempt: takes so many seconds of audio forward and backward.

    Raises:
        StorageError: the figure can't be remembered.
    """
    wanted = recipe.train.batch_seconds
    if wanted != "auto":
        return wanted
    if accelerator.device.type != "cuda":
        return CPU_SECONDS
    path = default_cache() / "capacity.json"
    known = _read(path)
    key = _key(recipe, accelerator)
    if key not in known:
        known[key] = _measured(accelerator.device, attempt)
        if accelerator.is_local_main_process:
            _write(path, known)
    figure = torch.tensor(known[key], device=accelerator.device)
    return float(accelerator.gather(figure).min())


def peak_memory(device: torch.device) -> float:
    """
    Return the most memory that the device has held, in GB; 0 for a CPU.
    """
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0


def _measured(device: torch.device, attempt: Callable[[float], None]) -> float:
    weights = torch.cuda.memory_allocated(device)
    attempt(TRIALS[0])  # the first one allocates workspaces too
    peaks = []
    for seconds in TRIALS:
        torch.cuda.reset_peak_memory_stats(device)
        attempt(seconds)
        peaks.append(torch.cuda.max_memory_allocated(device))
    slope = (peaks[1] - peaks[0]) / (TRIALS[1] - TRIALS[0])
    standing = peaks[0] - slope * TRIALS[0] + 2 * weights  # AdamW's two moments, made at the first step
    whole = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.empty_cache()
    return float(min(max(((1 - RESERVE) * whole - standing) / slope // 10 * 10, 30.0), MOST_SECONDS))


def _key(recipe: Recipe, accelerator: Accelerator) -> str:
    card = torch.cuda.get_device_properties(accelerator.device)
    settings = [recipe.train.precision, recipe.train.compile, recipe.train.ema > 0]
    known: list[Any] = [recipe.model.model_dump(), settings, accelerator.num_processes, torch.__version__, __version__]
    digest = hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]
    return f"{card.name}, {card.total_memory >> 20} MiB, {digest}"


def _read(path: Path) -> dict[str, float]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _write(path: Path, known: dict[str, float]) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f"{path.name}.{os.getpid()}")
        aside.write_text(json.dumps(known, indent=2), encoding="utf-8")
        aside.replace(path)
