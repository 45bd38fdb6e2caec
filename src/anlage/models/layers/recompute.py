"""Less memory from the forward to the backward pass: cheap operations run again there.

Shape suffixes: T packed tokens, D width, F width of what is projected.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

Linear = Callable[[Tensor], Tensor]


def linear_after(make: Callable[..., Tensor], *inputs: Tensor, layer: Linear) -> Tensor:
    """``layer(make(*inputs))``, of which the inputs alone are kept for the backward pass.

    There ``make`` runs again, and nothing else does: torch stops a recomputation as soon as it has
    what it needs, here when the layer takes its input. Values and gradients are the same bits.

    Args:
        make: Cheap operations without randomness: a norm, GELU, a gate, a copy.
        inputs: What it takes.
        layer: What is applied to its result, (T, F) -> (T, D).

    Returns:
        (T, D).
    """
    if not torch.is_grad_enabled():
        return layer(make(*inputs))
    out: Tensor = checkpoint(
        lambda *again: layer(make(*again)), *inputs, use_reentrant=False, preserve_rng_state=False
    )
    return out


def with_gain(layer: nn.Linear, gain: nn.Module) -> Linear:
    """``gain(layer(x))`` with a LayerScale multiplied into the layer's weights.

    What the gain multiplies need not be kept then: its gradient comes by way of the weights. Equal
    to the two in turn but for rounding.

    Args:
        layer: A linear layer with bias.
        gain: LayerScale, or ``nn.Identity`` for none.

    Returns:
        A function of (T, F).
    """
    if isinstance(gain, nn.Identity):
        return layer
    weight_DF, bias_D = gain(layer.weight.T).T, gain(layer.bias)
    return lambda rows_TF: functional.linear(rows_TF, weight_DF, bias_D)
