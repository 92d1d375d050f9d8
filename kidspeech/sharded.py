"""
Weights that FSDP has spread over the devices, gathered where a device has to compute alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method


@contextmanager
def gathered(network: nn.Module) -> Iterator[None]:
    """
    Hold all weights of *network* on this device for a block; where FSDP has not sharded it, do nothing.

    Sharded layers fetch their weights from all devices whenever they run. In generation each device has clips and tokens of
    its own number, so that they would wait for each other for ever. It costs the memory of the whole weights meanwhile.
    All devices have to enter and leave together.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, FSDPModule)]
    if layers:
        _make_root(network)
    for layer in layers:
        layer.set_reshard_after_forward(False, recurse=False)
        layer.unshard()
    try:
        yield
    finally:
        for layer in layers:
            layer.reshard()
            layer.set_reshard_after_forward(True, recurse=False)


def _make_root(network: nn.Module) -> None:
    # FSDP takes what runs first for the root, and in generation that would be a layer of the encoder
    register_fsdp_forward_method(network, "extra_repr")
    network.extra_repr()
