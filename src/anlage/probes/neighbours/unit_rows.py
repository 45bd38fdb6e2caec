"""Embeddings brought to length 1 on a fine grid, on which float64 dot products are exact."""

# Shape suffixes: N rows, D embedding width.

from __future__ import annotations

import torch
from torch import Tensor

GRID = 2.0**26
BLOCK_ROWS = 128  # in float64 they stay in the cache


def unit_rows(
    rows_ND: Tensor, *, mean_D: Tensor | None = None, scale_D: Tensor | None = None
) -> Tensor:
    """Rows less a mean, divided by a scale, of length 1, rounded to multiples of 2^-26.

    A product of two such numbers is a multiple of 2^-52, and so is each partial sum of a dot
    product, which stays below 2: float64 holds every one of them. A float64 dot product of two
    rows is therefore exact, the same in any order of summation: for every BLAS, number of threads,
    block size and device. The grid moves a similarity by some 1e-8, less than float32 does.

    Args:
        rows_ND: (N, D) float32, finite.
        mean_D: (D,) float64, subtracted first.
        scale_D: (D,) float64, above 0, that the rest is divided by.

    Returns:
        (N, D) float32 on the same device, a new tensor. A row of zeros stays one.
    """
    unit_ND = torch.empty_like(rows_ND)
    pairs = zip(torch.split(rows_ND, BLOCK_ROWS), torch.split(unit_ND, BLOCK_ROWS), strict=True)
    for rows, out in pairs:
        block = rows.double() if mean_D is None else rows - mean_D
        if scale_D is not None:
            block /= scale_D
        length = torch.linalg.vector_norm(block, dim=1, keepdim=True)
        length[length == 0] = 1
        out.copy_(block.mul_(GRID / length)).round_().div_(GRID)
    return unit_ND


def mean_row(rows_ND: Tensor) -> Tensor:
    """(D,) float64 mean of the rows, summed in float64 in blocks of one size."""
    total_D = rows_ND.new_zeros(rows_ND.shape[1], dtype=torch.float64)
    for block in torch.split(rows_ND, BLOCK_ROWS):
        total_D += block.double().sum(dim=0)
    return total_D / len(rows_ND)


def deviation_row(rows_ND: Tensor, mean_D: Tensor) -> Tensor:
    """(D,) float64 standard deviation (of N) of each feature; 1 where a feature is constant."""
    total_D = torch.zeros_like(mean_D)
    for block in torch.split(rows_ND, BLOCK_ROWS):
        total_D += (block.double() - mean_D).square_().sum(dim=0)
    deviation_D = (total_D / len(rows_ND)).sqrt_()
    low_D, high_D = rows_ND.aminmax(dim=0)
    deviation_D[low_D == high_D] = 1  # its computed deviation may be a rounding error above 0
    return deviation_D
