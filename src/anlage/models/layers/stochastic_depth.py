"""Stochastic depth that skips the work: a residual branch runs on part of the batch.

Shape suffixes: T packed tokens, K kept tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from anlage.models.layers.packing import SequenceShape


class KeptSequences(NamedTuple):
    """The sequences that take part in one residual branch.

    Attributes:
        row_K: (K,) int64 rows of the packed tokens that are kept.
        scale_K1: (K, 1) float32, sequences over kept sequences of the row's resolution.
        shapes: How the kept rows divide into sequences.
    """

    row_K: Tensor
    scale_K1: Tensor
    shapes: list[SequenceShape]


def keep_sequences(
    shapes: Sequence[SequenceShape],
    *,
    rate: float,
    device: torch.device,
    generator: torch.Generator | None = None,
) -> KeptSequences:
    """Draw which sequences take part, for each resolution by itself.

    Of B sequences, ``max(1, round(B * (1 - rate)))`` are kept, chosen uniformly, and weighted by
    B over that number, so that the expectation of the branch is the branch whatever the rounding.

    Args:
        shapes: How the packed rows divide into sequences.
        rate: Share of the sequences that are left out, in [0, 1).
        device: Where the tokens are.
        generator: Source of randomness on ``device``; None for torch's global one there.

    Returns:
        Rows, weights and shapes of what is kept.

    Source: Oquab et al. 2023, DINOv2, arXiv:2304.07193, section 5 (efficient stochastic depth).
        Differs in rounding to the nearest count instead of down.
    """
    rows, scales, kept_shapes = [], [], []
    first = 0
    for shape in shapes:
        n_kept = max(1, round(shape.n_sequences * (1 - rate)))
        chosen = torch.randperm(shape.n_sequences, device=device, generator=generator)[:n_kept]
        start = first + chosen.sort().values * shape.n_tokens
        rows.append((start[:, None] + torch.arange(shape.n_tokens, device=device)).flatten())
        scales.append(torch.full((len(rows[-1]), 1), shape.n_sequences / n_kept, device=device))
        kept_shapes.append(SequenceShape(n_kept, shape.n_tokens))
        first += shape.n_rows
    return KeptSequences(torch.cat(rows), torch.cat(scales), kept_shapes)
