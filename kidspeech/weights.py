"""
Weights in folders, one tensor at a time: read where they lie, written as they come.

A folder holds the weights of a checkpoint as safetensors, in one file or several; or LoRA's matrices in peft's form, which
stand for the weights of their base with the product of each pair added.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from kidspeech.errors import CheckpointError

# Names of the format's types: https://huggingface.co/docs/safetensors/index#format
TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CODES = {kind: code for code, kind in TYPES.items()}
ADAPTER_FILE, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"  # peft's names
PEFT_PREFIX = "base_model.model."  # of every name in an adapter's file


@dataclass(frozen=True)
class Layout:
    """
    What a tensor is, without its numbers.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{CODES[self.dtype]} {list(self.shape)}"


class Weights:
    """
    The tensors of a folder, by name.
    """

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            CheckpointError: no safetensors lie there, or one of them can't be read.
        """
        self._files: dict[str, Path] = {}
        self.layouts: dict[str, Layout] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with _opened(path) as file:
                for name in file.keys():  # noqa: SIM118  no dict
                    self._files[name], self.layouts[name] = path, _layout(file.get_slice(name), f"{name} in {path}")
        if not self.layouts:
            msg = f"{folder} holds no weights as *.safetensors; save them with save_pretrained of transformers"
            raise CheckpointError(msg)

    def read(self, name: str) -> torch.Tensor:
        """
        Return one tensor.
        """
        with _opened(self._files[name]) as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor


class Adapted:
    """
    The weights of a base with LoRA's products added, as peft merges them, in float64.

    Hu et al., LoRA: low-rank adaptation of large language models (2021), section 4.1: W + alpha / r * B A.
    """

    def __init__(self, base: Weights, adapter: Path) -> None:
        """
        Raises:
            CheckpointError: the adapter is no plain LoRA over linear layers of *base*.
        """
        self._base, self._matrices = base, Weights(adapter)
        self.layouts = base.layouts
        self._pairs = _pairs(adapter, set(self._matrices.layouts), base)
        self._scale = _scale(adapter)

    def read(self, name: str) -> torch.Tensor:
        """
        Return one tensor, in float64 where LoRA changes it.
        """
        weight = self._base.read(name)
        if name not in self._pairs:
            return weight
        down, up = (self._matrices.read(key).double() for key in self._pairs[name])
        return weight.double() + self._scale(len(down)) * (up @ down)


def write_safetensors(path: Path, layouts: Mapping[str, Layout], tensor: Callable[[str], torch.Tensor]) -> None:
    """
    Write a file of tensors, asking for each when its turn comes: safetensors' own functions want all of them in memory.

    Args:
        path: file to write.
        layouts: what will come, by name.
        tensor: returns the tensor of a name, of the shape and type announced.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, layout in layouts.items():
        start, end = end, end + math.prod(layout.shape) * layout.dtype.itemsize
        header[name] = {"dtype": CODES[layout.dtype], "shape": list(layout.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in layouts:
            file.write(tensor(name).contiguous().flatten().view(torch.uint8).numpy().data)


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        msg = f"{path} is no whole safetensors file ({error}); fetch or save it again"
        raise CheckpointError(msg) from error


def _layout(part: Any, where: str) -> Layout:
    code = part.get_dtype()
    if code not in TYPES:
        msg = f"{where} is of type {code}, of which no mean can be taken; give weights that are not quantised"
        raise CheckpointError(msg)
    return Layout(tuple(part.get_shape()), TYPES[code])


def _pairs(adapter: Path, names: set[str], base: Weights) -> dict[str, tuple[str, str]]:
    """
    Return the two names in an adapter's file that belong to each name of the base's.
    """
    pairs = {}
    for down in sorted(name for name in names if name.endswith(".lora_A.weight")):
        stem = down.removesuffix(".lora_A.weight")
        pairs[f"{stem.removeprefix(PEFT_PREFIX)}.weight"] = (down, f"{stem}.lora_B.weight")
    strange = names - {name for pair in pairs.values() for name in pair} | pairs.keys() - base.layouts.keys()
    if strange:
        msg = f"{adapter} is no plain LoRA over linear layers of its base ({min(strange)}); merge it with peft first"
        raise CheckpointError(msg)
    return pairs


def _scale(adapter: Path) -> Callable[[int], float]:
    settings = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    for key in ("use_dora", "alpha_pattern", "fan_in_fan_out"):
        if settings.get(key):
            msg = f"{adapter} uses peft's {key}; merge it with peft first"
            raise CheckpointError(msg)
    alpha, root = float(settings["lora_alpha"]), 0.5 if settings.get("use_rslora") else 1.0
    return lambda rank: alpha / rank**root
