"""Filling polygons, one pixel and one edge after the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def slow_fill(outlines: Sequence[Sequence[np.ndarray]], shape: tuple[int, int]) -> np.ndarray:
    """Pixels whose centres an odd number of a polygon's edges has on its left, of any polygon."""
    mask = np.zeros(shape, dtype=bool)
    for row in range(shape[0]):
        for column in range(shape[1]):
            centre = (column + 0.5, row + 0.5)
            mask[row, column] = any(is_inside(centre, rings) for rings in outlines)
    return mask


def is_inside(point: tuple[float, float], rings: Sequence[np.ndarray]) -> bool:
    inside = False
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            if (y0 <= point[1]) != (y1 <= point[1]):
                crossing = x0 + (point[1] - y0) / (y1 - y0) * (x1 - x0)
                inside ^= bool(crossing <= point[0])
    return inside
