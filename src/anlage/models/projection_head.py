"""The projection head of DINO and iBOT: an MLP to a bottleneck, then prototypes.

Shape suffixes: B rows (tiles or masked patches), D width, E bottleneck width, P prototypes.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from anlage.models.layers.initialisation import initialise_linear


class PrototypeLayer(nn.Module):
    """A linear layer without bias whose weight rows have a length of their own.

        logit_p = g_p * <x, v_p> / |v_p|,   g_p = 1 at the start

    Args:
        width: Bottleneck width E.
        n_prototypes: Prototypes P.

    Source: Salimans & Kingma 2016, weight normalisation, arXiv:1602.07868. Parameter names and
        initialisation of ``weight_v`` (torch's for a linear layer) as in DINOv2.
    """

    def __init__(self, *, width: int, n_prototypes: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.empty(n_prototypes, 1))
        self.weight_v = nn.Parameter(torch.empty(n_prototypes, width))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Draw the directions anew and set every length to 1."""
        bound = 1 / math.sqrt(self.weight_v.shape[1])
        nn.init.uniform_(self.weight_v, -bound, bound, generator=generator)
        nn.init.ones_(self.weight_g)

    def prototypes(self) -> Tensor:
        """The prototypes as rows, (P, E)."""
        length_P1 = torch.linalg.vector_norm(self.weight_v, dim=1, keepdim=True)
        prototypes_PE: Tensor = self.weight_v * (self.weight_g / length_P1)
        return prototypes_PE

    def forward(self, bottleneck_BE: Tensor) -> Tensor:
        """Score each row against each prototype, (B, E) -> (B, P)."""
        return functional.linear(bottleneck_BE, self.prototypes())


class Mlp(nn.Sequential):
    """Layers one after the other, which torch compiles as it does not compile ``nn.Sequential``.

    It never compiles a pass that is written in torch itself, only what such a pass calls.
    """

    def forward(self, tokens_BD: Tensor) -> Tensor:
        """All layers in turn, (B, D) -> (B, E)."""
        for layer in self:
            tokens_BD = layer(tokens_BD)
        return tokens_BD


class ProjectionHead(nn.Module):
    """Tokens to prototype scores.

    A GELU MLP without normalisation ends in a bottleneck, which is brought to unit length and
    scored against weight-normalised prototypes. Parameters of the prototypes are named
    ``last_layer.*``, so that an optimiser can hold them still at the start of training.

    Args:
        width: Token width D.
        n_prototypes: Prototypes P.
        hidden: Width of the hidden layers.
        bottleneck: Bottleneck width E.
        n_layers: Linear layers up to and including the bottleneck, >= 1.
        linear_std: Deviation of the MLP's first weights; None for one over the root of the
            fan-in, which suits narrow heads.

    Raises:
        ValueError: If a size is below 1.

    Source: Caron et al. 2021, DINO, arXiv:2104.14294; sizes of DINOv2, arXiv:2304.07193.
    """

    def __init__(
        self,
        *,
        width: int,
        n_prototypes: int,
        hidden: int = 2048,
        bottleneck: int = 256,
        n_layers: int = 3,
        linear_std: float | None = 0.02,
    ) -> None:
        super().__init__()
        sizes = [width, *[hidden] * (n_layers - 1), bottleneck]
        if n_layers < 1 or min(*sizes, n_prototypes) < 1:
            msg = (
                "ProjectionHead: needs n_layers and all sizes to be 1 or more; got "
                f"width={width}, hidden={hidden}, bottleneck={bottleneck}, "
                f"n_prototypes={n_prototypes}, n_layers={n_layers}. "
                "DINOv2 uses hidden=2048, bottleneck=256, n_layers=3."
            )
            raise ValueError(msg)
        self.linear_std = linear_std
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(sizes):
            layers += [nn.Linear(n_in, n_out), nn.GELU()]
        self.mlp = Mlp(*layers[:-1])
        self.last_layer = PrototypeLayer(width=bottleneck, n_prototypes=n_prototypes)
        self.initialise()

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights anew: MLP weights as ``initialise_linear`` does, biases zero."""
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                initialise_linear(layer, linear_std=self.linear_std, generator=generator)
        self.last_layer.initialise(generator)

    def bottleneck_of(self, tokens_BD: Tensor) -> Tensor:
        """Bottleneck vectors of unit length, float32 (or wider, as the weights are).

        Args:
            tokens_BD: (B, D) class or patch tokens; B may be 0.

        Returns:
            (B, E), each row of length 1.
        """
        narrow_BE = self.mlp(tokens_BD)
        wide = torch.promote_types(narrow_BE.dtype, torch.float32)
        return functional.normalize(narrow_BE.to(wide), dim=-1)

    def prototypes(self) -> Tensor:
        """The prototypes as rows, (P, E); with ``bottleneck_of``, what losses take in pieces."""
        return self.last_layer.prototypes()

    def forward(self, tokens_BD: Tensor) -> Tensor:
        """Prototype scores, whole.

        Args:
            tokens_BD: (B, D) class or patch tokens; B may be 0.

        Returns:
            (B, P) logits, at most the prototype's length in size (1 at the start).
        """
        logits_BP: Tensor = self.last_layer(self.bottleneck_of(tokens_BD))
        return logits_BP
