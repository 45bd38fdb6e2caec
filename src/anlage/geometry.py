"""Lengths on slides: pixels at one resolution, pixels at another, micrometres.

The only place that converts between them. Two frames meet in this package: *level-0 pixels*
(the finest level of a slide; every corner is in them, x before y) and *pixels at some mpp*
(a tile, a mask, another level).
"""

from __future__ import annotations

from math import floor
from typing import NamedTuple


class Size(NamedTuple):
    """Extent of a picture, in its own pixels."""

    width: int
    height: int


def level0_px(length_px: float, *, mpp: float, slide_mpp: float) -> float:
    """A length in level-0 pixels, not rounded.

    Args:
        length_px: Length in pixels at ``mpp``.
        mpp: Resolution of those pixels, micrometres per pixel, > 0.
        slide_mpp: Resolution of level 0, micrometres per pixel, > 0.

    Returns:
        ``length_px * mpp / slide_mpp``, level-0 pixels.

    Raises:
        ValueError: If a resolution is not above 0.
    """
    for name, value in (("mpp", mpp), ("slide_mpp", slide_mpp)):
        if not value > 0:
            msg = f"level0_px needs {name} > 0; got {value}. Give micrometres per pixel."
            raise ValueError(msg)
    return length_px * mpp / slide_mpp


def level_px(position_level0_px: float, *, downsample: float) -> int:
    """The pixel of a level that a level-0 position falls on: nearest, halves upwards.

    Args:
        position_level0_px: x or y in level-0 pixels; may be negative.
        downsample: Level-0 pixels per pixel of the level, >= 1.
    """
    return floor(position_level0_px / downsample + 0.5)


def area_mm2(n_px: float, *, mpp: float) -> float:
    """Area of ``n_px`` square pixels of edge ``mpp`` micrometres, in square millimetres."""
    return n_px * (mpp / 1000) ** 2
