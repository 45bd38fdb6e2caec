"""Cases on which torchscale's dilated attention was run, and their inputs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Case(NamedTuple):
    n_tokens: int
    n_heads: int
    width: int
    branches: tuple[tuple[int, int], ...]


CASES = {
    "divides": Case(48, 4, 2, ((12, 1), (24, 2), (48, 4))),
    "divides_nothing": Case(37, 5, 2, ((16, 1), (11, 2), (23, 4), (100, 8))),
    "dilation_above_bag": Case(3, 3, 4, ((16, 1), (8, 4), (100, 16))),
    "one_token": Case(1, 4, 2, ((16, 1), (8, 2))),
}


def inputs_of(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, values, and the gradient from above: (T, H, E) float64, exact in float32."""
    shape = case.n_tokens, case.n_heads, case.width
    number = torch.arange(case.n_tokens * case.n_heads * case.width, dtype=torch.float64)
    query, key, value, above = (
        (torch.sin(1 + part + 0.37 * number * (number % 11 + part)) * 2048).round().view(shape)
        / 1024
        for part in range(4)
    )
    return query, key, value, above
