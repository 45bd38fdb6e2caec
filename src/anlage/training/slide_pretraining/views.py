"""What a step takes of a bag: a window of its tiles, moved and mirrored, and which are hidden.

Every choice is a function of the seed and the number g of the draw.

Shape suffixes: L tiles of the bag, K tiles that are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anlage.tiles.keyed_random import Purpose, uniforms
from anlage.training.slide_pretraining.config import CellViews

WINDOW, ORDER = 0, 1  # items of the keyed numbers
FEWEST = 2  # tiles of a bag: one to see, one to predict


@dataclass(frozen=True, eq=False)
class BagView:
    """The tiles of a bag that one step takes.

    Attributes:
        row_K: (K,) int64 rows of the bag that are kept.
        cell_K2: (K, 2) int64 their cells (x, y) in this view, row by row of the grid.
        is_visible_K: (K,) bool, whether the encoder sees them; at least one and not all.
    """

    row_K: NDArray[np.int64]
    cell_K2: NDArray[np.int64]
    is_visible_K: NDArray[np.bool_]


def draw_view(
    cell_L2: NDArray[np.int64],
    *,
    seed: int,
    g: int,
    views: CellViews,
    mask_ratio: float,
    max_tiles: int | None = None,
) -> BagView:
    """Crop, move and mirror the cells of a bag, and choose what is hidden.

    The window covers ``crop`` of the bag's extent on each axis; a window that holds fewer than two
    tiles is not used. A mirror lies within the window, and the window is put anywhere inside
    ``n_grid`` cells. Tiles then come in the order of a grid, row by row, as mirroring changes it.

    Args:
        cell_L2: (L, 2) int64 cells (x, y), L at least 2.
        seed: Seed of the run.
        g: Number of the draw.
        views: Crop, grid and mirrors.
        mask_ratio: Share of tiles that are hidden.
        max_tiles: Most tiles that are kept, drawn at random; None for all.

    Returns:
        The view.

    Raises:
        ValueError: If there are fewer than two tiles.

    Source: Xu et al. 2024, Prov-GigaPath, for crop, translation and horizontal flip; their code is
    not published, and the order and the window are our reading (METHODS 3.4).
    """
    if len(cell_L2) < FEWEST:
        msg = f"draw_view: needs a bag of 2 tiles or more; got {len(cell_L2)}. Leave it out."
        raise ValueError(msg)
    drawn = uniforms(6, seed=seed, g=g, purpose=Purpose.VIEWS, item=WINDOW)
    row_K, first_2, last_2 = _window(cell_L2, crop=views.crop, drawn_2=drawn[:2])
    rank_K = uniforms(len(row_K), seed=seed, g=g, purpose=Purpose.MASK, item=ORDER)
    if max_tiles is not None and len(row_K) > max_tiles:
        kept = np.sort(np.argpartition(rank_K, max_tiles)[:max_tiles])
        row_K, rank_K = row_K[kept], rank_K[kept]
    cell_K2 = cell_L2[row_K] - first_2
    edge_2 = last_2 - first_2
    for axis, probability in enumerate((views.hflip_probability, views.vflip_probability)):
        if drawn[2 + axis] < probability:
            cell_K2[:, axis] = edge_2[axis] - cell_K2[:, axis]
    room_2 = np.maximum(views.n_grid - (edge_2 + 1), 0)
    cell_K2 += np.floor(drawn[4:6] * (room_2 + 1)).astype(np.int64)
    order = np.lexsort((cell_K2[:, 0], cell_K2[:, 1]))
    hidden = hidden_of(rank_K[order], mask_ratio)
    return BagView(row_K[order], cell_K2[order], ~hidden)


def fixed_view(
    cell_L2: NDArray[np.int64],
    *,
    seed: int,
    g: int,
    mask_ratio: float,
    max_tiles: int | None = None,
) -> BagView:
    """A bag as it lies, with the same tiles hidden each time: for measuring.

    Args:
        cell_L2: (L, 2) int64 cells (x, y), L at least 2.
        seed: Seed of the run.
        g: Number of the bag among those measured.
        mask_ratio: Share of tiles that are hidden.
        max_tiles: Most tiles that are kept, drawn at random; None for all.
    """
    rank_L = uniforms(len(cell_L2), seed=seed, g=g, purpose=Purpose.MASK, item=ORDER)
    row_K = np.arange(len(cell_L2))
    if max_tiles is not None and len(row_K) > max_tiles:
        row_K = np.sort(np.argpartition(rank_L, max_tiles)[:max_tiles])
    return BagView(row_K, cell_L2[row_K], ~hidden_of(rank_L[row_K], mask_ratio))


def hidden_of(rank_K: NDArray[np.float64], mask_ratio: float) -> NDArray[np.bool_]:
    """Which tiles are hidden: those with the smallest numbers, at least one and not all."""
    n_hidden = min(max(round(mask_ratio * len(rank_K)), 1), len(rank_K) - 1)
    hidden = np.zeros(len(rank_K), dtype=np.bool_)
    hidden[np.argsort(rank_K, kind="stable")[:n_hidden]] = True
    return hidden


def _window(
    cell_L2: NDArray[np.int64], *, crop: float, drawn_2: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Rows inside a random window, and its first and last cell."""
    low_2, high_2 = cell_L2.min(axis=0), cell_L2.max(axis=0)
    extent_2 = high_2 - low_2 + 1
    edge_2 = np.ceil(crop * extent_2).astype(np.int64)
    first_2 = low_2 + np.floor(drawn_2 * (extent_2 - edge_2 + 1)).astype(np.int64)
    last_2 = first_2 + edge_2 - 1
    row_K = np.flatnonzero(((cell_L2 >= first_2) & (cell_L2 <= last_2)).all(axis=1))
    if len(row_K) < FEWEST:
        return np.arange(len(cell_L2)), low_2, high_2
    return row_K, first_2, last_2
