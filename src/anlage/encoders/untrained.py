"""The same network with random weights: the floor that every score stands beside."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from anlage.encoders.other_network import OtherNetwork
from anlage.errors import EncoderError
from anlage.models.vit import VisionTransformer


def untrained_network(
    network: VisionTransformer | OtherNetwork, architecture: Mapping[str, Any], *, seed: int
) -> VisionTransformer | OtherNetwork:
    """A network of the same architecture with weights drawn anew, on the CPU.

    Ours are drawn as at the start of training. Those of other networks layer by layer with the
    layer's own ``reset_parameters``; parameters that belong to no such layer (class tokens,
    positions, gains) from a normal of their own mean and deviation.

    Args:
        network: The network; left as it is.
        architecture: Keyword arguments of ``VisionTransformer`` if it is ours, else what it is.
        seed: Which weights; the global generators are left alone.

    Raises:
        EncoderError: If it has no parameters.
    """
    if isinstance(network, VisionTransformer):
        with torch.random.fork_rng(devices=[]):
            ours = VisionTransformer(**architecture)
        ours.initialise(torch.Generator().manual_seed(seed))
        return ours
    if next(network.parameters(), None) is None:
        msg = (
            "has no weights that anlage knows of, so it has no untrained floor. "
            "Return a torch.nn.Module from the function that makes it."
        )
        raise EncoderError(str(dict(architecture)), msg)
    other = deepcopy(network).cpu()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        _draw(other)
    return other


def _draw(network: nn.Module) -> None:
    drawn: set[int] = set()
    for module in network.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
            drawn |= {id(parameter) for parameter in module.parameters(recurse=False)}
    for parameter in network.parameters():
        if id(parameter) not in drawn:
            values = parameter.float()
            deviation = float(values.std()) if values.numel() > 1 else 0.0
            parameter.normal_(float(values.mean()), deviation)
