"""Places of tiles on the grid of a slide encoder.

Shape suffixes: L tiles of a slide.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def grid_cells(corner_L2: ArrayLike, *, slide_mpp: float, grid_um: float) -> NDArray[np.int64]:
    """The cell (x, y) of each tile: which square of ``grid_um`` its corner lies in.

        cell = floor((corner + 1) * slide_mpp / grid_um)

    The one pixel takes up the rounding of corners to whole pixels: tiles 128 um apart on a slide of
    0.2528 um a pixel begin at 506.3 and 1012.7, stored as 506 and 1012, which is short of cell 2.

    Args:
        corner_L2: (L, 2) corners (x, y), level-0 pixels.
        slide_mpp: Resolution of level 0, micrometres per pixel, > 0.
        grid_um: Edge of a cell, micrometres, > 0; 128 for Prov-GigaPath (256 px at 0.5 mpp).

    Returns:
        (L, 2) int64 cells (x, y), from 0 where corners are not negative.

    Raises:
        ValueError: If ``slide_mpp`` or ``grid_um`` is not a positive number.

    Source: Xu et al. 2024, A whole-slide foundation model for digital pathology from real-world
        data, Nature 630:181, Methods. Their code floors corner / 256 in pixels. At 0.5 um a pixel
        that is the same but for corners one pixel short of a cell, 255 say, which here are in it.
    """
    if not (0 < slide_mpp < np.inf and 0 < grid_um < np.inf):
        msg = (
            f"grid_cells: needs slide_mpp and grid_um > 0; got {slide_mpp} and {grid_um}. "
            "Give both in micrometres."
        )
        raise ValueError(msg)
    corner_L2 = np.asarray(corner_L2)
    return np.floor((corner_L2 + 1) * (slide_mpp / grid_um)).astype(np.int64)


def n_in_taken_cells(cell_L2: NDArray[np.int64]) -> int:
    """How many tiles lie in a cell that an earlier tile lies in already.

    Args:
        cell_L2: (L, 2) cells.
    """
    if not len(cell_L2):
        return 0
    least_2, most_2 = cell_L2.min(axis=0), cell_L2.max(axis=0)
    key_L = (cell_L2 - least_2) @ np.array([1, most_2[0] - least_2[0] + 1])
    return len(key_L) - len(np.unique(key_L))
