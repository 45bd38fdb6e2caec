"""Fixed positions of tiles on a slide's grid, from their cells alone.

Shape suffixes: T tiles, U cells that occur on one axis, D width, F frequencies (a quarter of D).
"""

from __future__ import annotations

import torch
from torch import Tensor

LONGEST_PERIOD = 10_000.0


def grid_positions(cell_T2: Tensor, *, width: int) -> Tensor:
    """Sines and cosines of each tile's cell: the first half for y, the second for x.

    Each half holds D/4 sines, then D/4 cosines, of the cell times ``10000 ** -(f / (D/4))``. They
    are computed in float64 for the rows and columns that occur, so that no table of the whole grid
    is kept (2.9 GiB at GigaPath's size) and no grid ends: cells beyond 1,000 a side, of which
    GigaPath's code takes the row of another cell, or stops, have positions of their own.

    Args:
        cell_T2: (T, 2) cells (x, y), whole numbers.
        width: D, a multiple of 4.

    Returns:
        (T, D) float32, in [-1, 1], on the cells' device.

    Raises:
        ValueError: If the cells are not (T, 2) whole numbers, or D is not a multiple of 4.

    Source: He et al. 2022, MAE, arXiv:2111.06377, its official code; Xu et al. 2024, Prov-GigaPath,
        whose row of cell (x, y) is ``1 + 1000 x + y``.
    """
    if width < 4 or width % 4:
        msg = f"grid_positions: needs a width that is a multiple of 4; got {width}. Change it."
        raise ValueError(msg)
    if cell_T2.ndim != 2 or cell_T2.shape[1] != 2 or cell_T2.is_floating_point():
        msg = (
            "grid_positions: needs (T, 2) whole cells (x, y); got "
            f"{tuple(cell_T2.shape)} {cell_T2.dtype}. Divide corners by the grid first."
        )
        raise ValueError(msg)
    x_T, y_T = cell_T2.unbind(dim=1)
    return torch.cat([_along(y_T, width=width // 2), _along(x_T, width=width // 2)], dim=1)


def _along(cell_T: Tensor, *, width: int) -> Tensor:
    """(T, width) positions along one axis."""
    n_frequencies = width // 2
    occurs_U, row_T = torch.unique(cell_T, return_inverse=True)
    exponent_F = torch.arange(n_frequencies, dtype=torch.float64, device=cell_T.device)
    frequency_F = LONGEST_PERIOD ** -(exponent_F / n_frequencies)
    angle_UF = occurs_U.double()[:, None] * frequency_F
    return torch.cat([angle_UF.sin(), angle_UF.cos()], dim=1).float()[row_T]
