"""Bags and weights of the golden numbers of poolings: the same on every machine."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from golden.inputs import wave
from torch import nn

N_CLASSES, N_INSTANCES = 3, 4
CLAM_LENGTHS, CLAM_TARGETS, CLAM_WIDTH = (19, 8, 33), (2, 0, 1), 10
TRANSMIL_LENGTHS, TRANSMIL_WIDTH = (1, 6, 37, 300), 1024
EVA_LENGTHS, EVA_WIDTH = (7, 1, 12), 12
GIGAPATH_SIZES = {"input_width": 24, "width": 32, "depth": 2}
GIGAPATH_TILES, GIGAPATH_ROUTES = 1100, (((2,), "cls"), ((0, 1), "cls"), ((1, 2), "mean"))
HAZARD_LOGITS = torch.from_numpy(wave(8, 4, phase=0.9)) * 3
HAZARD_BINS, HAZARD_EVENTS = (0, 1, 2, 3, 0, 1, 2, 3), (1, 1, 1, 1, 0, 0, 0, 0)


def features(lengths: Iterable[int], width: int) -> torch.Tensor:
    """(T, D) features of the bags."""
    return torch.from_numpy(wave(sum(lengths), width, phase=0.3))


def weight(name: str, shape: Iterable[int]) -> torch.Tensor:
    """A parameter by our name for it: about as large as after a usual start."""
    shape = tuple(shape)
    drawn = torch.from_numpy(wave(*shape, phase=sum(map(ord, name)) % 89))
    if len(shape) == 1:
        return 0.1 * drawn + ("norm" in name and name.endswith("weight"))
    return drawn * math.sqrt(3 / math.prod(shape[1:]))


@torch.no_grad()
def fill(module: nn.Module) -> None:
    """Give a module of ours these weights."""
    for name, parameter in module.named_parameters():
        parameter.copy_(weight(name, parameter.shape))
