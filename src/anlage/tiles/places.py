"""Every place of a slide where a tile holds enough tissue, as runs of mask pixels."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

import numpy as np
from numpy.typing import NDArray

from anlage.slides.masks import SummedArea
from anlage.tiles.grid import ROUNDING, refuse_coarse_mask

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Places of one tile size on one slide.

    A place is a mask pixel such that a tile whose corner is nearest to it holds enough tissue,
    wherever within that pixel the corner lies. Runs of places take some 100 KB for a large slide,
    where its summed-area table takes 20 MB; the mask itself is not kept.

    Attributes:
        run_starts: (R,) int64, first place of each run, ``row * n_columns + column``.
        run_ends: (R,) int64, places up to and with the run; the last is the number of places.
        x_low: (n_columns,) int64, first level-0 pixel nearest to each mask column.
        x_high: (n_columns,) int64, last one from which the tile stays inside the slide.
        y_low: The same of the rows.
        y_high: The same of the rows.
    """

    run_starts: Integers
    run_ends: Integers
    x_low: Integers
    x_high: Integers
    y_low: Integers
    y_high: Integers

    @property
    def n_places(self) -> int:
        """How many places there are."""
        return int(self.run_ends[-1]) if len(self.run_ends) else 0

    def corner(self, u_place: float, u_x: float, u_y: float) -> tuple[int, int]:
        """A corner (x, y) in level-0 pixels, uniform over all places for uniform numbers in [0, 1).

        Raises:
            IndexError: If there is no place.
        """
        nth = int(u_place * self.n_places)
        run = int(np.searchsorted(self.run_ends, nth, side="right"))
        before = int(self.run_ends[run - 1]) if run else 0
        row, column = divmod(int(self.run_starts[run]) + nth - before, len(self.x_low))
        x_low, y_low = int(self.x_low[column]), int(self.y_low[row])
        return (
            x_low + int(u_x * (int(self.x_high[column]) - x_low + 1)),
            y_low + int(u_y * (int(self.y_high[row]) - y_low + 1)),
        )


def find_places(
    tissue_mask: NDArray[np.bool_],
    *,
    slide_size: tuple[int, int],
    per_mask_px: float,
    edge: float,
    min_tissue: float,
) -> Places:
    """Find the places where a tile holds at least ``min_tissue``.

    Args:
        tissue_mask: (H, W) bool covering the whole slide.
        slide_size: Width and height of level 0, pixels.
        per_mask_px: Level-0 pixels a mask pixel, at least 1.
        edge: Tile edge in level-0 pixels, need not be whole.
        min_tissue: Smallest tissue fraction, 0 to 1, counted on the mask pixels nearest the
            tile's edges.

    Returns:
        The places; none if the slide is smaller than the tile.

    Raises:
        ValueError: If the mask does not cover the slide, or a mask pixel is smaller than a
            level-0 pixel, or a tile than a mask pixel.
    """
    if per_mask_px < 1 - ROUNDING:
        msg = (
            f"find_places: needs a mask no finer than the slide; got {per_mask_px:g} level-0 "
            "pixels a mask pixel. Compute the mask at the slide's mpp or coarser."
        )
        raise ValueError(msg)
    refuse_coarse_mask("find_places", edge=edge, per_mask_px=per_mask_px, mask_mpp=per_mask_px)
    covered = tuple(n * per_mask_px for n in tissue_mask.shape[::-1])
    if any(has < needs - per_mask_px for has, needs in zip(covered, slide_size, strict=True)):
        msg = (
            f"find_places: needs a mask that covers the slide; got {covered[0]:g} x {covered[1]:g} "
            f"of {slide_size[0]} x {slide_size[1]} pixels. Compute the mask of this slide anew."
        )
        raise ValueError(msg)
    (x_low, x_high), (y_low, y_high) = (_corners(n, edge, per_mask_px) for n in slide_size)
    table = SummedArea(tissue_mask).table
    is_place = np.ones((len(y_low), len(x_low)), dtype=np.bool_)
    for bottom in _far_edges(y_low, y_high, edge, per_mask_px):
        band = table[np.minimum(bottom, len(table) - 1)] - table[: len(bottom)]
        for right in _far_edges(x_low, x_high, edge, per_mask_px):
            n_tissue = np.take(band, np.minimum(right, table.shape[1] - 1), axis=1)
            n_tissue -= band[:, : len(right)]
            n_pixels = np.outer(bottom - np.arange(len(bottom)), right - np.arange(len(right)))
            is_place &= n_tissue >= (min_tissue - ROUNDING) * n_pixels
    starts, lengths = _runs(is_place)
    return Places(starts, lengths.cumsum(), x_low, x_high, y_low, y_high)


def _corners(length: int, edge: float, per_mask_px: float) -> tuple[Integers, Integers]:
    """First and last level-0 pixel nearest to each mask pixel from which a tile fits the slide.

    A pixel halfway between two mask pixels is left out, so that no rounding rule decides.
    """
    last = floor(length - edge + ROUNDING)
    middle = np.arange(int(last / per_mask_px) + 2 if last >= 0 else 0)
    low = np.maximum(np.floor((middle - 0.5) * per_mask_px + ROUNDING) + 1, 0)
    high = np.minimum(np.ceil((middle + 0.5) * per_mask_px - ROUNDING) - 1, last)
    n = int(np.count_nonzero(high >= low))
    return low[:n].astype(np.int64), high[:n].astype(np.int64)


def _far_edges(low: Integers, high: Integers, edge: float, per_mask_px: float) -> list[Integers]:
    """Mask pixels that the tile's far edge can be nearest to: the same for all, or two choices."""
    nearest = np.rint((low + edge) / per_mask_px), np.rint((high + edge) / per_mask_px)
    first, last = (n.astype(np.int64) for n in nearest)
    return [first] if np.array_equal(first, last) else [first, last]


def _runs(is_place: NDArray[np.bool_]) -> tuple[Integers, Integers]:
    """Starts, flattened, and lengths of the runs of True along rows."""
    rows, columns = is_place.shape
    walled = np.zeros((rows, columns + 1), dtype=np.int8)
    walled[:, :columns] = is_place
    change = np.diff(walled.ravel(), prepend=np.int8(0))
    start, end = np.flatnonzero(change == 1), np.flatnonzero(change == -1)
    row = start // (columns + 1)
    return (start - row).astype(np.int64), (end - start).astype(np.int64)
