"""How the weights of linear layers and patch projections are drawn at the start."""

from __future__ import annotations

from torch import Generator, nn


def initialise_linear(
    layer: nn.Linear | nn.Conv2d, *, linear_std: float | None, generator: Generator | None
) -> None:
    """Draw a layer's weights from a normal cut at ±2 (absolute, as torch's default), zero its bias.

    DINOv2's deviation of 0.02 suits layers some 1,000 to 2,500 wide; in a layer of 144 it shrinks
    what passes to a quarter, so that a short run spends its steps growing weights. ``None``
    keeps the size of what passes at any width: one over the root of the fan-in.

    Args:
        layer: The layer, changed in place.
        linear_std: Standard deviation of its weights; None for ``fan_in ** -0.5``.
        generator: Source of randomness on its device; None for the global one.
    """
    fan_in = layer.weight[0].numel()
    std = fan_in**-0.5 if linear_std is None else linear_std
    nn.init.trunc_normal_(layer.weight, std=std, generator=generator)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
