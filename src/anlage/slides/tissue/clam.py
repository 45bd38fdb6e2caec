"""Tissue as CLAM finds it: a fixed threshold on saturation, closing, and areas in patches."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

CLAM_MPP = 16.0  # 64 times smaller than 40x
SATURATION_ABOVE = 8  # of 255
MEDIAN_PX = 7
CLOSE_PX = 4
PATCH_UM = 512 * 0.25  # areas count in patches of 512 px at 40x
MIN_TISSUE_PATCHES = 100
MIN_HOLE_PATCHES = 16
MAX_HOLES = 8  # kept of each part of the tissue, the largest

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def tissue_by_clam(pixels: Pixels, mpp: float) -> Mask:
    """Saturated parts of at least 1.6 mm², their holes filled but for the eight largest.

    HSV saturation, median-blurred over 7 pixels, above 8 of 255, closed with a square of 4 pixels.
    A part stays if its area without holes is above 100 patches; of its holes, the eight largest
    that are above 16 patches (0.26 mm²). Grey stains, such as silver, have no saturation; small
    biopsies and cores can be below 1.6 mm².

    Args:
        pixels: (H, W, 3) uint8 RGB, the whole slide.
        mpp: Their resolution; 16 as published for a slide at 40x.

    Returns:
        (H, W) bool, True on tissue.

    Source: Lu et al. 2021, CLAM, arXiv:2004.09666, Methods, and the defaults that its documentation
    lists. Written from those, not from its code (GPL-3). Differences: areas are counted in pixels
    instead of along contours, and a patch is always 128 µm (CLAM's is 512 px of whatever level 0
    is, so at 20x its smallest area is four times larger).
    """
    saturation = cv2.medianBlur(cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)[..., 1], MEDIAN_PX)
    square = np.ones((CLOSE_PX, CLOSE_PX), np.uint8)
    above = (saturation > SATURATION_ABOVE).astype(np.uint8)
    closed = cv2.morphologyEx(above, cv2.MORPH_CLOSE, square)
    patch_px = (PATCH_UM / mpp) ** 2
    _, parts, statistics, _ = cv2.connectedComponentsWithStats(closed, connectivity=8)
    keep = statistics[:, cv2.CC_STAT_AREA] > MIN_TISSUE_PATCHES * patch_px
    keep[0] = False  # label 0 is the glass
    tissue = np.asarray(keep[parts])
    filled = _holes_to_fill(tissue, np.asarray(parts), MIN_HOLE_PATCHES * patch_px)
    return np.asarray(tissue | filled)


def _holes_to_fill(tissue: Mask, parts: NDArray[Any], smallest_px: float) -> Mask:
    """Every hole but the largest few of each part that are above ``smallest_px``."""
    outside = (~tissue).astype(np.uint8)
    n_holes, holes, statistics, _ = cv2.connectedComponentsWithStats(outside, connectivity=4)
    left, top, width, height, area = statistics.T
    bottom, right = tissue.shape
    at_edge = (left == 0) | (top == 0) | (left + width == right) | (top + height == bottom)
    fill = ~at_edge
    fill[0] = False  # label 0 is the tissue
    kept_of: dict[int, int] = {}
    for hole in sorted(np.flatnonzero(fill & (area > smallest_px)), key=lambda i: -area[i]):
        column = int(np.argmax(holes[top[hole]] == hole))
        part = int(
            parts[top[hole] - 1, column]
        )  # what lies above a hole's first pixel is around it
        kept_of[part] = kept_of.get(part, 0) + 1
        fill[hole] = kept_of[part] > MAX_HOLES
    assert n_holes == len(fill)
    return np.asarray(fill[holes])
