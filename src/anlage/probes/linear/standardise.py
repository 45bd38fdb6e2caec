"""What features are centred and scaled by: mean and deviation over the train rows."""

# Shape suffixes: M train rows, D embedding width.

from __future__ import annotations

import torch
from torch import Tensor

BLOCK_VALUES = 2**20


def mean_and_deviation(train_MD: Tensor) -> tuple[Tensor, Tensor]:
    """(D,) float64 mean and population deviation, in blocks of 8 MiB; 1 for a constant feature."""
    n_rows, width = train_MD.shape
    blocks = torch.split(train_MD, max(1, BLOCK_VALUES // width))
    mean_D = torch.stack([block.sum(dim=0, dtype=torch.float64) for block in blocks]).sum(0)
    mean_D /= n_rows
    square_D = torch.zeros_like(mean_D)
    for block in blocks:
        square_D += (block.double() - mean_D).square().sum(dim=0)
    scale_D = (square_D / n_rows).sqrt()
    rounding_D = 10 * torch.finfo(torch.float64).eps * mean_D.abs()
    return mean_D, torch.where(scale_D > rounding_D, scale_D, 1.0)
