"""A slide read the slow way: whole levels in memory, one pixel at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

WHITE = 255


def reduced(picture: np.ndarray, factor: int) -> np.ndarray:
    """Means of whole blocks, float64; the rows and columns that fill no block are left out."""
    height, width = (extent // factor * factor for extent in picture.shape[:2])
    blocks = picture[:height, :width].reshape(
        height // factor, factor, width // factor, factor, picture.shape[2]
    )
    return blocks.mean(axis=(1, 3))


def slow_region(
    picture: np.ndarray, downsample: float, corner: Sequence[int], *, width: int, height: int
) -> np.ndarray:
    """What ``read_region`` gives of a picture of that downsample, on an endless white table."""
    column, row = (math.floor(place / downsample + 0.5) for place in corner)
    region = np.full((height, width, picture.shape[2]), WHITE, picture.dtype)
    for i in range(height):
        for j in range(width):
            y, x = row + i, column + j
            if 0 <= y < picture.shape[0] and 0 <= x < picture.shape[1]:
                region[i, j] = picture[y, x]
    return region
