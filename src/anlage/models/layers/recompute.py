"""Less memory from the forward to the backward pass: some of the first runs again in the second.

Shape suffixes: T packed tokens, D width, F width of what is projected.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

Linear = Callable[[Tensor], Tensor]
Recompute = Literal["none", "selective", "full"]
"""What of a block runs again: nothing, its norms and activations, all of it."""


def run_again(run: Callable[[Tensor], Tensor], tokens_TD: Tensor) -> Tensor:
    """``run(tokens_TD)``, of which the tokens alone are kept for the backward pass.

    There all of it runs again, but for a last product of matrices that no gradient needs. Values
    and gradients are the same bits.

    Args:
        run: What is run; it may not draw random numbers.
        tokens_TD: (T, D).

    Returns:
        (T, D).
    """
    if not torch.is_grad_enabled():
        return run(tokens_TD)
    out: Tensor = checkpoint(run, tokens_TD, use_reentrant=False, preserve_rng_state=False)
    return out


def linear_after(make: Callable[..., Tensor], *inputs: Tensor, layer: Linear) -> Tensor:
    """``layer(make(*inputs))``, of which the inputs alone are kept for the backward pass.

    There ``make`` runs again, and nothing else does: torch stops a recomputation as soon as it has
    what it needs, here when the layer takes its input; a compiler does not, and is told to keep
    what the layer gives. Values and gradients are the same bits.

    Args:
        make: Cheap operations without randomness: a norm, GELU, a gate, a copy.
        inputs: What it takes.
        layer: What is applied to its result, (T, F) -> (T, D).

    Returns:
        (T, D).
    """
    if not torch.is_grad_enabled():
        return layer(make(*inputs))
    how: dict[str, Any] = {}
    if torch.compiler.is_compiling():
        how["context_fn"] = _keep_products
    out: Tensor = checkpoint(
        lambda *again: layer(make(*again)),
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,
        **how,
    )
    return out


def _keep_products() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """What a compiler is told of a region: of its products of matrices none runs again."""
    aten = torch.ops.aten
    kept = [aten.mm.default, aten.addmm.default]
    return create_selective_checkpoint_contexts(kept)  # type: ignore[no-any-return, no-untyped-call]


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
    scaled = {"weight": gain(layer.weight.T).T, "bias": gain(layer.bias)}
    return lambda rows_TF: torch.func.functional_call(layer, scaled, (rows_TF,))
