"""Scores painted over a slide at one resolution: which pixels a tile covers, and their colours.

Shape suffixes: L tiles of the slide. Frame: pixels of the heatmap, ``downsample`` level-0 pixels
each, the origin in the slide's upper left corner.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import ceil

import cv2
import numpy as np
from numpy.typing import NDArray

from anlage.explain.slide_scores import ScoredTiles, TileScore
from anlage.geometry import Size

Pixels = NDArray[np.uint8]
OPACITY = 0.55  # of the colours over a slide's pixels
WITHOUT_WEIGHT = (200, 200, 200)
WHITE = 255
FINEST_UM = 2.0  # a pixel of an overlay: nuclei are still seen
ENOUGH_PX = 2048  # side of an overlay that need not be made smaller
LONGEST_PX = 8192  # side of an overlay; its picture then takes 0.2 GB


@dataclass(frozen=True, kw_only=True, eq=False)
class Heatmap:
    """One score over one slide, painted a band of rows at a time.

    A pixel belongs to a tile if its centre lies in the tile's rectangle, so tiles that adjoin share
    no pixel and leave none between them. Where tiles overlap their ranks are averaged; nothing is
    smoothed.

    Attributes:
        tiles: The tiles.
        score: What is painted, one of theirs.
        downsample: Level-0 pixels a pixel, > 0.
    """

    tiles: ScoredTiles
    score: TileScore
    downsample: float

    @property
    def size(self) -> Size:
        """Width and height: the slide's, rounded up."""
        width, height = (ceil(px / self.downsample) for px in self.tiles.slide_size)
        return Size(width, height)

    @property
    def mpp(self) -> float:
        """Resolution, micrometres per pixel."""
        return self.downsample * self.tiles.slide_mpp

    @cached_property
    def spans(self) -> NDArray[np.int64]:
        """(L, 4) left, top, right, bottom of each tile; the last two are the first outside it."""
        tiles = self.tiles
        return pixel_spans(tiles.corner_L2, tiles.edge_level0_px, downsample=self.downsample)

    def ranks(self, top: int, bottom: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Mean rank of the tiles over each pixel of some rows.

        Args:
            top: The first row.
            bottom: The first row below.

        Returns:
            (bottom - top, width) float32, NaN where no tile has weight; and bool, whether any tile
            is there.
        """
        height, width = bottom - top, self.size.width
        touches = (self.spans[:, 1] < bottom) & (self.spans[:, 3] > top)
        span = self.spans[touches] - (0, top, 0, top)
        rank = self.score.rank[touches]
        has_weight = ~np.isnan(rank)
        span = np.clip(span, 0, (width, height, width, height))
        n_tiles = _summed(span, np.ones(len(span)), height, width)
        n_weighted = _summed(span[has_weight], np.ones(has_weight.sum()), height, width)
        total = _summed(span[has_weight], rank[has_weight], height, width)
        mean = np.full((height, width), np.nan, np.float32)
        np.divide(total, np.rint(n_weighted), out=mean, where=n_weighted > 0.5, casting="same_kind")
        return mean, n_tiles > 0.5

    def over(self, picture: Pixels | None, top: int, bottom: int) -> Pixels:
        """The colours of some rows, over the slide's pixels or on white.

        Args:
            picture: (height, width, 3) uint8, the whole slide in this frame; None for white.
            top: The first row.
            bottom: The first row below.

        Returns:
            (bottom - top, width, 3) uint8 RGB.
        """
        rank, is_tile = self.ranks(top, bottom)
        colours = colours_of(rank)
        if picture is None:
            return np.where(is_tile[..., None], colours, np.uint8(WHITE))
        under = picture[top:bottom]
        mixed = cv2.addWeighted(colours, OPACITY, under, 1 - OPACITY, 0)
        return np.where(is_tile[..., None], mixed, under).astype(np.uint8)

    def transparent(self) -> Pixels:
        """The colours alone: (height, width, 4) uint8 RGBA, clear where no tile is."""
        rank, is_tile = self.ranks(0, self.size.height)
        alpha = np.where(is_tile, np.uint8(WHITE), np.uint8(0))
        return np.dstack([colours_of(rank), alpha])

    def whole(self, picture: Pixels | None) -> Pixels:
        """All rows of ``over``, for a small picture."""
        return self.over(picture, 0, self.size.height)


def pixel_spans(
    corner_L2: NDArray[np.int64], edge_level0_px: float, *, downsample: float
) -> NDArray[np.int64]:
    """The pixels whose centres lie in each tile.

    Args:
        corner_L2: (L, 2) corners (x, y), level-0 pixels.
        edge_level0_px: Edge of a tile, level-0 pixels.
        downsample: Level-0 pixels a pixel.

    Returns:
        (L, 4) int64 left, top, and the first right and below that are outside. They may lie beyond
        the slide, and be empty where a tile is smaller than a pixel.
    """
    first_L2 = np.ceil(corner_L2 / downsample - 0.5)
    last_L2 = np.ceil((corner_L2 + edge_level0_px) / downsample - 0.5)
    return np.concatenate([first_L2, last_L2], axis=1).astype(np.int64)


def colours_of(rank: NDArray[np.floating]) -> Pixels:
    """Ranks, any shape of 0 to 1, as RGB colours, dark blue to yellow; grey where NaN."""
    step = np.clip(np.nan_to_num(rank) * 256, 0, 255).astype(np.uint8)
    colours: Pixels = _palette()[step]
    colours[np.isnan(rank)] = WITHOUT_WEIGHT
    return colours


@lru_cache(maxsize=1)
def _palette() -> Pixels:
    """(256, 3) RGB: viridis, which grows evenly in lightness and is read by the colour-blind."""
    steps = np.arange(256, dtype=np.uint8)
    bgr = cv2.applyColorMap(steps[:, None], cv2.COLORMAP_VIRIDIS)
    return np.ascontiguousarray(bgr[:, 0, ::-1])


def overlay_downsample(slide_size: Size, *, slide_mpp: float) -> int:
    """Level-0 pixels a pixel of an overlay: a power of two, so that places convert exactly.

    The finest at which a pixel is at least 2 µm wide or the longer side at most 2,048 pixels; it is
    never above 8,192, so that memory is bounded whatever the slide.
    """
    downsample = 1
    longest = max(slide_size)
    while (
        downsample * slide_mpp < FINEST_UM and longest / downsample > ENOUGH_PX
    ) or longest / downsample > LONGEST_PX:
        downsample *= 2
    return downsample


def halved(picture: Pixels) -> Pixels:
    """Each two by two pixels averaged; the last odd row or column goes on beyond the edge."""
    height, width = picture.shape[:2]
    even = cv2.copyMakeBorder(picture, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    size = ((width + 1) // 2, (height + 1) // 2)
    return np.asarray(cv2.resize(even, size, interpolation=cv2.INTER_AREA), np.uint8)


def _summed(
    span: NDArray[np.int64], value: NDArray[np.float64], height: int, width: int
) -> NDArray[np.float64]:
    """Sum of the values of the rectangles over each pixel: one pass, whatever their number."""
    change = np.zeros((height + 1, width + 1))
    left, top, right, bottom = span.T
    for rows, columns, sign in (
        *((top, left, 1), (bottom, right, 1)),
        *((top, right, -1), (bottom, left, -1)),
    ):
        np.add.at(change, (rows, columns), sign * value)
    summed: NDArray[np.float64] = change.cumsum(axis=0).cumsum(axis=1)[:-1, :-1]
    return summed
