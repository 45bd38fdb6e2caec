"""Embeddings brought to length 1 on a fine grid, on which float64 dot products are exact."""

# Shape suffixes: N rows, D embedding width.

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from anlage.probes.neighbours.worker_threads import in_threads

GRID = 2.0**26
BLOCK_ROWS = 64  # in float64 they stay in the cache
PIECE_ROWS = 32 * BLOCK_ROWS  # that a worker takes at a time


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

    def fill(piece: tuple[Tensor, Tensor]) -> None:
        blocks = (torch.split(side, BLOCK_ROWS) for side in piece)
        for rows, out in zip(*blocks, strict=True):
            block = rows.double() if mean_D is None else rows - mean_D
            if scale_D is not None:
                block /= scale_D
            length = torch.linalg.vector_norm(block, dim=1, keepdim=True)
            length[length == 0] = 1
            out.copy_(block.mul_(GRID / length)).round_().div_(GRID)

    pieces = zip(torch.split(rows_ND, PIECE_ROWS), torch.split(unit_ND, PIECE_ROWS), strict=True)
    in_threads(fill, list(pieces), n_workers=_n_workers(rows_ND))
    return unit_ND


def mean_row(rows_ND: Tensor) -> Tensor:
    """(D,) float64 mean of the rows, summed in float64 in blocks of one size."""
    return _summed(lambda rows: rows.double().sum(dim=0), rows_ND) / len(rows_ND)


def deviation_row(rows_ND: Tensor, mean_D: Tensor) -> Tensor:
    """(D,) float64 standard deviation (of N) of each feature; 1 where a feature is constant."""
    total_D = _summed(lambda rows: (rows - mean_D).square_().sum(dim=0), rows_ND)
    deviation_D = (total_D / len(rows_ND)).sqrt_()
    low_D, high_D = rows_ND.aminmax(dim=0)
    deviation_D[low_D == high_D] = 1  # its computed deviation may be a rounding error above 0
    return deviation_D


def _summed(of: Callable[[Tensor], Tensor], rows_ND: Tensor) -> Tensor:
    """Sum over blocks of rows, added up in one order whoever computes them."""

    def total(rows: Tensor) -> Tensor:
        sum_D = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
        for block in torch.split(rows, BLOCK_ROWS):
            sum_D += of(block)
        return sum_D

    totals = in_threads(total, torch.split(rows_ND, PIECE_ROWS), n_workers=_n_workers(rows_ND))
    return torch.stack(totals).sum(dim=0)


def _n_workers(rows_ND: Tensor) -> int:
    return 1 if rows_ND.is_cuda else torch.get_num_threads()
