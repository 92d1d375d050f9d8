"""
Step folders of a LoRA run: the adapters only, in peft's form, at rank 32 a thirtieth of the weights.

Apart from kidspeech.models.lora, since who prepares or predicts does without accelerate.
"""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from kidspeech.config import Model
from kidspeech.models.lora import load_adapter, save_adapter


def keep_adapters_only(accelerator: Accelerator, config: Model) -> None:
    """
    Make the step folders of *accelerator* hold LoRA's matrices, and take them back from there. The base is read from where the
    recipe says. Under FSDP they hold every device's shards of both.
    """
    if accelerator.distributed_type == DistributedType.FSDP:
        return

    def save(models: list[nn.Module], weights: list[dict[str, torch.Tensor]], folder: str) -> None:
        if accelerator.is_main_process:
            save_adapter(accelerator.unwrap_model(models[0], keep_torch_compile=False), config, Path(folder))
        weights.clear()  # what accelerate would write itself

    def load(models: list[nn.Module], folder: str) -> None:
        load_adapter(accelerator.unwrap_model(models[0], keep_torch_compile=False), Path(folder))
        models.clear()  # what accelerate would read itself

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)
