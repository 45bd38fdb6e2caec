"""Slow, obvious counts of the tissue in a tile: the oracles of tiles.grid and tiles.places."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
from numpy.typing import NDArray


def nearest(value: Fraction) -> int:
    """The nearest whole number, halves to even."""
    return round(value)


def tissue_of_tile(
    mask: NDArray[np.bool_], x: int, y: int, *, edge: Fraction, per_mask_px: Fraction
) -> Fraction:
    """Tissue fraction of a tile at level-0 corner (x, y), counted pixel by pixel."""
    left, top = nearest(x / per_mask_px), nearest(y / per_mask_px)
    right, bottom = nearest((x + edge) / per_mask_px), nearest((y + edge) / per_mask_px)
    n_tissue = 0
    for row in range(top, bottom):
        for column in range(left, right):
            inside = row < mask.shape[0] and column < mask.shape[1]
            n_tissue += bool(inside and mask[row, column])
    return Fraction(n_tissue, (right - left) * (bottom - top))


def slow_tile_grid(
    mask: NDArray[np.bool_],
    *,
    mask_mpp: Fraction,
    slide_mpp: Fraction,
    tile: tuple[int, int, Fraction],
    min_tissue: Fraction,
    slide_size: tuple[int, int],
) -> list[tuple[int, int]]:
    """Corners of the kept tiles, in exact fractions; ``tile`` is (size_px, stride_px, mpp)."""
    size_px, stride_px, mpp = tile
    edge, step = size_px * mpp / slide_mpp, stride_px * mpp / slide_mpp
    per_mask_px = mask_mpp / slide_mpp
    corners = []
    row = 0
    while row * step + edge <= slide_size[1]:
        column = 0
        while column * step + edge <= slide_size[0]:
            x, y = floor(column * step), floor(row * step)
            if tissue_of_tile(mask, x, y, edge=edge, per_mask_px=per_mask_px) >= min_tissue:
                corners.append((x, y))
            column += 1
        row += 1
    return corners
