"""Attention rollout with every matrix whole, as its paper writes it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def slow_rollout(attention: Sequence[np.ndarray]) -> np.ndarray:
    """The product of all layers: (S, S) float64 from (H, S, S) each, first layer first.

    Abnar & Zuidema 2020, arXiv:2005.00928, section 3: each layer's attention, mean over heads, is
    half of the way and the residual connection the other half; layers are multiplied.
    """
    n_tokens = attention[0].shape[-1]
    rolled = np.eye(n_tokens)
    for layer in attention:
        mean = sum(head.astype(np.float64) for head in layer) / len(layer)
        step = 0.5 * mean + 0.5 * np.eye(n_tokens)
        rolled = step @ rolled
    return rolled
