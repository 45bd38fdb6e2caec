"""A whole slide as one small picture, read in blocks so that memory stays bounded."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from anlage.geometry import Size, level0_px
from anlage.slides.levels import choose_level
from anlage.slides.masks import mask_shape
from anlage.slides.reader import SlideReader
from anlage.slides.rectangle import spans

BLOCK_PX = 4096  # edge of one read, in pixels of the level
THUMBNAIL_PX = 512

Pixels = NDArray[np.uint8]


def read_overview(slide: SlideReader, *, mpp: float) -> tuple[Pixels, float]:
    """The whole slide at one resolution, area-averaged from the coarsest level that is fine enough.

    Where the decoder itself can reduce that level, and it stays fine enough, it does.
    Pixel (row, column) shows the square from ``column * mpp`` to ``(column + 1) * mpp``
    micrometres; blocks begin on the nearest pixel of the level, so nothing drifts over the slide.
    Where the last row and column reach over the slide's edge, its outermost pixels go on.

    Args:
        slide: An open slide with a resolution.
        mpp: Wanted resolution, micrometres per pixel.

    Returns:
        (H, W, 3) uint8 RGB and its exact mpp: the wanted one, or the slide's where that is coarser.
        H and W are the slide's extent over that mpp, rounded up.

    Raises:
        ValueError: If ``mpp`` is not positive.
        SlideError: If the slide has no resolution or cannot be read.
    """
    if not mpp > 0:
        msg = f"read_overview needs mpp > 0; got {mpp}. Ask for 8 to find tissue."
        raise ValueError(msg)
    mpp = max(mpp, slide.mpp)
    height, width = mask_shape(slide.size, slide_mpp=slide.mpp, mask_mpp=mpp)
    level = choose_level(slide.levels, slide_mpp=slide.mpp, target_mpp=mpp)
    ratio = level0_px(1, mpp=mpp, slide_mpp=slide.mpp) / slide.levels[level].downsample
    reduce = max((n for n in slide.reductions(level) if n <= ratio), default=1)
    ratio /= reduce
    picture = np.empty((height, width, 3), dtype=np.uint8)
    across, down = (max(1, int(px / ratio)) for px in _block(slide, level, reduce))
    for top, bottom in spans(height, down):
        for left, right in spans(width, across):
            edges = [round(edge * ratio) for edge in (left, top, right, bottom)]
            block = _read_block(slide, level, edges, reduce=reduce)
            size = (right - left, bottom - top)
            picture[top:bottom, left:right] = cv2.resize(block, size, interpolation=cv2.INTER_AREA)
    return picture, mpp


def _block(slide: SlideReader, level: int, reduce: int) -> Size:
    """What is read at once, in pixels of a level reduced: about a square of ``BLOCK_PX``.

    Strips, and tiles that are wider still, are decoded whole for every read that touches them,
    so that blocks are as wide as they are, and lower for it.
    """
    native = slide.native_tile(level)
    width = BLOCK_PX if native is None else max(BLOCK_PX, native.width // reduce)
    return Size(width, max(BLOCK_PX * BLOCK_PX // width, 1))


def _read_block(slide: SlideReader, level: int, edges: list[int], *, reduce: int) -> Pixels:
    """Pixels of a level reduced between left, top, right, bottom; its edge goes on beyond it."""
    stored = slide.levels[level]
    width, height = stored.width // reduce, stored.height // reduce
    downsample = stored.downsample * reduce
    left, top = min(edges[0], width - 1), min(edges[1], height - 1)
    right = max(min(edges[2], width), left + 1)
    bottom = max(min(edges[3], height), top + 1)
    x, y = (round(edge * downsample) for edge in (left, top))
    inside = slide.read_region(x, y, right - left, bottom - top, level=level, reduce=reduce)
    beyond = (max(0, edges[3] - bottom), max(0, edges[2] - right))
    if not any(beyond):
        return inside
    extended = cv2.copyMakeBorder(inside, 0, beyond[0], 0, beyond[1], cv2.BORDER_REPLICATE)
    return np.asarray(extended, dtype=np.uint8)


def thumbnail_mpp(slide: SlideReader) -> float:
    """Resolution at which the slide's longer side is 512 pixels (its own, if it is smaller)."""
    return slide.mpp * max(1.0, max(slide.size) / THUMBNAIL_PX)


def shrink(pixels: Pixels, *, mpp: float, target_mpp: float) -> Pixels:
    """A picture at a coarser resolution, area-averaged; its extent rounded to whole pixels."""
    size = [
        max(1, round(level0_px(px, mpp=mpp, slide_mpp=target_mpp))) for px in pixels.shape[1::-1]
    ]
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
