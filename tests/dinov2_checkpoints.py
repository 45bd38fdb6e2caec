"""Stand-ins for checkpoints of dinov2's training: its names and formats, small random weights."""

from __future__ import annotations

from itertools import pairwise

import torch
from published_weights import hub_named, theirs
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

SMALL = "vit_small_patch14_dinov2"


class PlainHead(nn.Module):
    """The head as dinov2's paper and checkpoints have it, of torch's own layers."""

    def __init__(self, seed: int, *, n_layers: int = 3, named: str = "old", bias: bool = True):
        super().__init__()
        torch.manual_seed(seed)
        sizes = [96, *[40] * (n_layers - 1), 24]
        layers = []
        for n_in, n_out in pairwise(sizes):
            layers += [nn.Linear(n_in, n_out, bias=bias), nn.GELU()]
        self.mlp = layers[0] if n_layers == 1 else nn.Sequential(*layers[:-1])
        last = nn.Linear(24, 50, bias=False)
        norm = torch.nn.utils.weight_norm if named == "old" else parametrizations.weight_norm
        self.last_layer = norm(last)
        for parameter in self.last_layer.parameters():
            nn.init.uniform_(parameter, 0.5, 2.0)

    def forward(self, tokens_BD: torch.Tensor) -> torch.Tensor:
        return self.last_layer(functional.normalize(self.mlp(tokens_BD), dim=-1, eps=1e-12))


def prefixed(prefix: str, tensors: dict) -> dict:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def network(kind: str, seed: int, *, chunk: int | None = 2, tied: bool = False, **head: object):
    parts = prefixed("backbone.", hub_named(theirs(kind, seed).state_dict(), chunk))
    parts |= prefixed("dino_head.", PlainHead(seed, **head).state_dict())
    if not tied:
        parts |= prefixed("ibot_head.", PlainHead(seed + 100, **head).state_dict())
    return parts


def training_checkpoint(kind: str = SMALL, **options: object) -> dict:
    """What a whole run stores: both networks, centres, optimiser and iteration."""
    model = prefixed("student.", network(kind, 1, **options))
    model |= prefixed("teacher.", network(kind, 2, **options))
    model |= {"dino_loss.center": torch.full((1, 50), 0.5)}
    model |= {"ibot_patch_loss.center": torch.full((1, 1, 50), 0.25)}
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-3}]}
    return {"model": model, "optimizer": optimizer, "iteration": 1249}
