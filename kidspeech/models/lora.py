"""
LoRA: small trained matrices beside the frozen projections of attention and feed-forward blocks.

Hu et al., LoRA: low-rank adaptation of large language models (2021). peft does the work; here stands where the matrices go,
how they are kept, and how they become plain weights again. The network stays the class that it was, so nothing else in
kidspeech knows of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kidspeech.config import Model
from kidspeech.errors import CheckpointError, RecipeError
from kidspeech.weights import ADAPTER_FILE, PEFT_PREFIX

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
LORA_DOWN, LORA_UP = ".lora_A.default.weight", ".lora_B.default.weight"  # peft's names: r x in, out x r


def add_lora(network: nn.Module, config: Model) -> None:
    """
    Put LoRA beside every projection of *network* (of the decoder only where the encoder is frozen), and freeze the rest.

    The second matrix of each pair starts at zero: the network computes what it did.

    Raises:
        RecipeError: peft is not installed.
    """
    peft = _peft()
    peft.inject_adapter_in_model(_settings(config), network)


def merged_state(state: Mapping[str, torch.Tensor], config: Model) -> dict[str, torch.Tensor]:
    """
    Return the weights in *state* with LoRA's products added, named as without LoRA; *state* stays as it is.
    """
    merged = {name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if ".lora_" not in name}
    for name in state:
        if name.endswith(LORA_DOWN):
            stem = name.removesuffix(LORA_DOWN)
            down, up = state[name], state[f"{stem}{LORA_UP}"]
            merged[f"{stem}.weight"] = state[f"{stem}.base_layer.weight"] + up @ down * (config.lora_alpha / len(down))
    return merged


def save_adapter(network: nn.Module, config: Model, folder: Path) -> None:
    """
    Write the matrices of *network* and their settings into *folder*, in peft's form.
    """
    state = {name: parameter.detach().contiguous() for name, parameter in _adapter(network).items()}
    save_file(state, folder / ADAPTER_FILE, metadata={"format": "pt"})
    _settings(config).save_pretrained(folder)


def load_adapter(network: nn.Module, folder: Path) -> None:
    """
    Take the matrices in *folder* into *network*, which has LoRA of the same shapes.

    Raises:
        CheckpointError: they are of other layers.
    """
    saved, matrices = load_file(folder / ADAPTER_FILE), _adapter(network)
    if saved.keys() != matrices.keys():
        msg = f"{folder / ADAPTER_FILE} holds other matrices than this recipe's; begin anew with --force-restart"
        raise CheckpointError(msg)
    with torch.no_grad():
        for name, parameter in matrices.items():
            parameter.copy_(saved[name])


def _settings(config: Model) -> Any:
    blocks = r"model\.decoder\..*" if config.freeze_encoder else r"model\.(encoder|decoder)\..*"
    return _peft().LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules=rf"{blocks}\.({'|'.join(PROJECTIONS)})",
        base_model_name_or_path=config.pretrained,
    )


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise RecipeError('model.lora_rank: LoRA needs peft: pip install "kidspeech[lora]"') from error
    return peft


def _adapter(network: nn.Module) -> dict[str, nn.Parameter]:
    matrices = {name: parameter for name, parameter in network.named_parameters() if ".lora_" in name}
    return {f"{PEFT_PREFIX}{name.replace('.default.', '.')}": parameter for name, parameter in matrices.items()}
