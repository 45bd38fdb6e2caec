"""Tiles at exactly the resolution that was asked for, from the level that suits best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from anlage.errors import ResolutionError
from anlage.geometry import level0_px
from anlage.slides.reader import Level, SlideReader

TOLERANCE = 0.02  # a level this much coarser than the target still counts as fine enough
EXACT = 1e-9
Decode = Literal["scaled", "full"]
DECODES: tuple[str, ...] = get_args(Decode)
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


@dataclass(frozen=True, slots=True)
class TileWindow:
    """One tile to be read: where it begins, and what its pixels are.

    Attributes:
        x: Left edge, level-0 pixels.
        y: Top edge, level-0 pixels.
        size_px: Edge, in pixels at ``mpp``, >= 1.
        mpp: Resolution, micrometres per pixel.
    """

    x: int
    y: int
    size_px: int
    mpp: float


class TileSource(NamedTuple):
    """The pixels a tile is made of: a square of a level that the decoder may have reduced.

    Attributes:
        level: Index into the slide's levels.
        reduce: One of the level's ``reductions``.
        ratio: Pixels of the level reduced per pixel of the tile, not rounded.
        edge_px: Edge of the square, pixels of the level reduced.
    """

    level: int
    reduce: int
    ratio: float
    edge_px: int


def choose_source(
    slide: SlideReader, *, size_px: int, mpp: float, decode: Decode, reduce: int | None = None
) -> TileSource:
    """What a tile is read from: the coarsest level, and reduction of it, that is fine enough.

    Args:
        slide: Open slide that knows its resolution.
        size_px: Tile edge, in pixels at ``mpp``, >= 1.
        mpp: Resolution of the tile, micrometres per pixel.
        decode: "scaled" lets the decoder reduce, "full" does not.
        reduce: Take this reduction of the level instead.

    Raises:
        ResolutionError: If the slide is more than 2 % coarser than ``mpp``, or its own is unknown.
        ValueError: If ``size_px`` or ``mpp`` is not above 0, or there is no such ``decode``.
    """
    if size_px < 1 or not mpp > 0:
        msg = f"read_tile needs size_px >= 1 and mpp > 0; got size_px={size_px}, mpp={mpp}."
        raise ValueError(msg)
    if decode not in DECODES:
        msg = f"read_tile needs decode to be one of {', '.join(DECODES)}; got {decode!r}."
        raise ValueError(msg)
    level = choose_level(slide.levels, slide_mpp=slide.mpp, target_mpp=mpp)
    level_mpp = slide.mpp * slide.levels[level].downsample
    if reduce is None:
        largest = mpp / level_mpp * (1 + TOLERANCE) if decode == "scaled" else 1
        reduce = max((n for n in slide.reductions(level) if n <= largest), default=1)
    ratio = level0_px(1, mpp=mpp, slide_mpp=level_mpp * reduce)
    if ratio < 1 / (1 + TOLERANCE) - EXACT:
        raise ResolutionError(
            slide.path,
            f"is too coarse for {mpp:g} µm per pixel: its finest level has {level_mpp:g}. "
            f"Ask for mpp >= {level_mpp:g}, or leave this slide out.",
        )
    if abs(ratio - 1) * size_px < EXACT:
        return TileSource(level, reduce, 1.0, size_px)
    edge_px = math.ceil(size_px * ratio - EXACT) + (1 if ratio < 1 else 0)
    return TileSource(level, reduce, ratio, edge_px)


def read_tile(
    slide: SlideReader, x: int, y: int, *, size_px: int, mpp: float, decode: Decode = "scaled"
) -> NDArray[np.uint8]:
    """One square tile at exactly ``mpp``, however that divides the slide's levels.

    Read from the coarsest level that is fine enough, which the decoder itself reduces by 2, 4 or 8
    where it can and that is fine enough too; then reduced by area (every source pixel counts by
    the share of it that the target pixel covers) with the unrounded ratio. A source up to 2 %
    coarser than the target is interpolated linearly. The tile begins at the pixel nearest to the
    corner of the level reduced, hence at most half a pixel of its own beside it (less, the larger
    the ratio); beyond the slide it is white.

    Args:
        slide: Open slide that knows its resolution.
        x: Left edge, level-0 pixels.
        y: Top edge, level-0 pixels.
        size_px: Tile edge, in pixels at ``mpp``, >= 1.
        mpp: Resolution of the tile, micrometres per pixel.
        decode: "full" decodes every pixel and averages, which is slower: the corner is then one
            of the stored level's pixels, and the pixels are the plain mean of those they cover.

    Returns:
        (size_px, size_px, 3) uint8 RGB.

    Raises:
        ResolutionError: If the slide is more than 2 % coarser than ``mpp``, or its own is unknown.
        ValueError: If ``size_px`` or ``mpp`` is not above 0.
        SlideError: If the pixels are damaged.
    """
    source = choose_source(slide, size_px=size_px, mpp=mpp, decode=decode)
    edge_px = source.edge_px
    pixels = slide.read_region(x, y, edge_px, edge_px, level=source.level, reduce=source.reduce)
    return resample(pixels, ratio=source.ratio, size_px=size_px)


def resample(pixels: NDArray[np.uint8], *, ratio: float, size_px: int) -> NDArray[np.uint8]:
    """A square tile from the square of source pixels that holds it; by area, or linear below 1.

    Args:
        pixels: (E, E, 3) uint8, E as in ``TileSource.edge_px``.
        ratio: Source pixels per pixel of the tile; at exactly 1 the pixels are returned.
        size_px: Edge of the tile.
    """
    if ratio == 1:
        return pixels
    moved = len(pixels) / ratio - len(pixels)  # by which target and source differ in size
    if -CV2_COPIES_BELOW < moved < CV2_COPIES_BELOW:
        return _averaged(pixels, ratio, size_px)
    # Without a target size cv2 keeps the ratio as it is, and does not round it to fit one.
    how = cv2.INTER_AREA if ratio > 1 else cv2.INTER_LINEAR
    resized = cv2.resize(pixels, None, fx=1 / ratio, fy=1 / ratio, interpolation=how)
    return np.asarray(resized[:size_px, :size_px], np.uint8)


def _averaged(source: NDArray[np.uint8], ratio: float, size_px: int) -> NDArray[np.uint8]:
    """Resample by a ratio near 1, each target pixel the mean under a box around its centre.

    The box is ``ratio`` source pixels wide, and never less than one: the area average above 1,
    linear interpolation below. cv2 would copy here, since source and target have one size.
    """
    box = max(ratio, 1.0)
    start = (np.arange(size_px) + 0.5) * ratio - box / 2
    first = np.floor(start).astype(np.int64)
    pixel = first[:, None] + np.arange(3)  # a box below 2 touches 3
    covered = np.minimum(pixel + 1, start[:, None] + box) - np.maximum(pixel, start[:, None])
    share = (np.clip(covered, 0, 1) / box).astype(np.float32)
    framed = cv2.copyMakeBorder(source, 1, 3, 1, 3, cv2.BORDER_REPLICATE).astype(np.float32)
    columns = np.asarray(cv2.transpose(_weighted(framed, first + 1, share)), np.float32)
    tile = cv2.transpose(_weighted(columns, first + 1, share))
    return np.asarray(cv2.convertScaleAbs(tile), np.uint8)  # rounds


def _weighted(
    rows: NDArray[np.float32], first: NDArray[np.int64], share: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Sums of three rows each, from ``first`` on: those of neighbours lie side by side in runs."""
    flat = rows.reshape(len(rows), -1)
    total = np.empty((len(first), flat.shape[1]), np.float32)
    bounds = [0, *(np.flatnonzero(np.diff(first) != 1) + 1).tolist(), len(first)]
    for start, stop in pairwise(bounds):
        at = int(first[start])
        run = total[start:stop]
        np.multiply(flat[at : at + stop - start], share[start:stop, :1], out=run)
        for k in (1, 2):
            run += flat[at + k : at + k + stop - start] * share[start:stop, k : k + 1]
    return total.reshape(len(first), *rows.shape[1:])
