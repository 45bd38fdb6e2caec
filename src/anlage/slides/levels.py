"""Tiles at exactly the resolution that was asked for, from the level that suits best."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from anlage.errors import ResolutionError
from anlage.geometry import level0_px
from anlage.slides.reader import Level, SlideReader

TOLERANCE = 0.02  # a level this much coarser than the target still counts as fine enough
EXACT = 1e-9
CV2_COPIES_BELOW = 0.51  # cv2.resize copies when source and target round to the same size


def choose_level(levels: Sequence[Level], *, slide_mpp: float, target_mpp: float) -> int:
    """The coarsest level at or finer than the target (within 2 %); 0 if even that is coarser.

    Args:
        levels: The pyramid, level 0 the finest.
        slide_mpp: Resolution of level 0, micrometres per pixel.
        target_mpp: Resolution that is wanted, micrometres per pixel.
    """
    largest = target_mpp / slide_mpp * (1 + TOLERANCE)
    fine_enough = [i for i, level in enumerate(levels) if level.downsample <= largest]
    return max(fine_enough, key=lambda i: levels[i].downsample, default=0)


def read_tile(slide: SlideReader, x: int, y: int, *, size_px: int, mpp: float) -> NDArray[np.uint8]:
    """One square tile at exactly ``mpp``, however that divides the slide's levels.

    Read from the coarsest level that is fine enough, then reduced by area (every source pixel
    counts by the share of it that the target pixel covers) with the unrounded ratio. A level up
    to 2 % coarser than the target is interpolated linearly. The tile begins at the level's pixel
    nearest to the corner; beyond the slide it is white.

    Args:
        slide: Open slide that knows its resolution.
        x: Left edge, level-0 pixels.
        y: Top edge, level-0 pixels.
        size_px: Tile edge, in pixels at ``mpp``, >= 1.
        mpp: Resolution of the tile, micrometres per pixel.

    Returns:
        (size_px, size_px, 3) uint8 RGB.

    Raises:
        ResolutionError: If the slide is more than 2 % coarser than ``mpp``, or its own is unknown.
        ValueError: If ``size_px`` or ``mpp`` is not above 0.
        SlideError: If the pixels are damaged.
    """
    if size_px < 1 or not mpp > 0:
        msg = f"read_tile needs size_px >= 1 and mpp > 0; got size_px={size_px}, mpp={mpp}."
        raise ValueError(msg)
    level = choose_level(slide.levels, slide_mpp=slide.mpp, target_mpp=mpp)
    level_mpp = slide.mpp * slide.levels[level].downsample
    ratio = level0_px(1, mpp=mpp, slide_mpp=level_mpp)
    if ratio < 1 / (1 + TOLERANCE) - EXACT:
        raise ResolutionError(
            slide.path,
            f"is too coarse for {mpp:g} µm per pixel: its finest level has {level_mpp:g}. "
            f"Ask for mpp >= {level_mpp:g}, or leave this slide out.",
        )
    if abs(ratio - 1) * size_px < EXACT:
        return slide.read_region(x, y, size_px, size_px, level=level)
    source_px = math.ceil(size_px * ratio - EXACT) + (1 if ratio < 1 else 0)
    source = slide.read_region(x, y, source_px, source_px, level=level)
    if source_px - source_px / ratio < CV2_COPIES_BELOW:
        return _averaged(source, ratio, size_px)
    # Without a target size cv2 keeps the ratio as it is, and does not round it to fit one.
    reduced = cv2.resize(source, None, fx=1 / ratio, fy=1 / ratio, interpolation=cv2.INTER_AREA)
    return np.asarray(reduced[:size_px, :size_px], np.uint8)


def _averaged(source: NDArray[np.uint8], ratio: float, size_px: int) -> NDArray[np.uint8]:
    """Resample by a ratio near 1, each target pixel the mean under a box around its centre.

    The box is ``ratio`` source pixels wide, and never less than one: the area average above 1,
    linear interpolation below. cv2 would copy here, since source and target have one size.
    """
    box = max(ratio, 1.0)
    start = (np.arange(size_px) + 0.5) * ratio - box / 2
    pixel = np.floor(start).astype(np.int64)[:, None] + np.arange(3)  # a box below 2 touches 3
    covered = np.minimum(pixel + 1, start[:, None] + box) - np.maximum(pixel, start[:, None])
    share = (np.clip(covered, 0, 1) / box).astype(np.float32)
    pixel = np.clip(pixel, 0, len(source) - 1)
    rows = np.zeros((size_px, *source.shape[1:]), np.float32)
    tile = np.zeros((size_px, size_px, 3), np.float32)
    for k in range(3):
        rows += share[:, k, None, None] * source[pixel[:, k]]
    for k in range(3):
        tile += share[:, k, None] * rows[:, pixel[:, k]]
    return np.asarray(np.rint(tile), np.uint8)
