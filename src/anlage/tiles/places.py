"""Every place of a slide where a tile holds enough tissue, as runs of mask pixels."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor

import cv2
import numpy as np
from numpy.typing import NDArray

from anlage.tiles.grid import ROUNDING, refuse_coarse_mask

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Extents = dict[int, NDArray[np.bool_]]


@dataclass(frozen=True, slots=True)
class CornerRange:
    """Where corners may lie: level-0 pixels, both ends included."""

    x_first: int
    x_last: int
    y_first: int
    y_last: int


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Places of one tile size on one slide.

    A place is a mask pixel such that a tile whose corner is nearest to it holds enough tissue,
    wherever within that pixel the corner lies. Runs of places take some 100 KB for a large slide,
    where its summed-area table takes 20 MB; the mask itself is not kept.

    Attributes:
        run_starts: (R,) int64, first place of each run, ``row * n_columns + column``.
        n_before: (R + 1,) int64, places before each run; the last is the number of places.
        x_low: (n_columns,) int64, first level-0 pixel nearest to each mask column.
        x_high: (n_columns,) int64, last one from which the tile stays inside the slide.
        y_low: The same of the rows.
        y_high: The same of the rows.
    """

    run_starts: Integers
    n_before: Integers
    x_low: Integers
    x_high: Integers
    y_low: Integers
    y_high: Integers

    @property
    def n_places(self) -> int:
        """How many places there are."""
        return int(self.n_before[-1])

    @property
    def n_bytes(self) -> int:
        """Bytes they take in memory."""
        arrays = (self.run_starts, self.n_before, self.x_low, self.x_high, self.y_low, self.y_high)
        return sum(array.nbytes for array in arrays)

    def corner(self, u_place: float, u_x: float, u_y: float) -> tuple[int, int]:
        """A corner (x, y) in level-0 pixels, uniform over all places for uniform numbers in [0, 1).

        Raises:
            IndexError: If there is no place.
        """
        nth = int(u_place * self.n_places)
        run = int(self.n_before.searchsorted(nth, side="right")) - 1
        place = int(self.run_starts[run]) + nth - int(self.n_before[run])
        row, column = divmod(place, len(self.x_low))
        x, y = int(self.x_low[column]), int(self.y_low[row])
        return (
            x + int(u_x * (int(self.x_high[column]) - x + 1)),
            y + int(u_y * (int(self.y_high[row]) - y + 1)),
        )

    def corners_within(self, corners: CornerRange, u_N3: Floats) -> Integers:
        """Corners uniform over the places within a rectangle.

        A place counts as within if any of its corners is; the corner is drawn among those.

        Args:
            corners: Where they may lie.
            u_N3: Uniform numbers in [0, 1): of the place, of x and of y.

        Returns:
            (N, 2) int64 corners (x, y), level-0 pixels.

        Raises:
            IndexError: If no place lies within.
        """
        columns = _overlapping(self.x_low, self.x_high, corners.x_first, corners.x_last)
        rows = _overlapping(self.y_low, self.y_high, corners.y_first, corners.y_last)
        row_start = np.arange(rows.start, rows.stop) * len(self.x_low)
        first_in_row = self._rank(row_start + columns.start)
        n_to_row = np.cumsum(self._rank(row_start + columns.stop) - first_in_row)
        nth = (u_N3[:, 0] * n_to_row[-1]).astype(np.int64)
        row = np.searchsorted(n_to_row, nth, side="right")
        n_before_row = np.concatenate(([0], n_to_row))[row]
        row, column = np.divmod(
            self._place(first_in_row[row] + nth - n_before_row), len(self.x_low)
        )
        low = np.maximum(self.x_low[column], corners.x_first)
        high = np.minimum(self.x_high[column], corners.x_last)
        x = low + (u_N3[:, 1] * (high - low + 1)).astype(np.int64)
        low = np.maximum(self.y_low[row], corners.y_first)
        high = np.minimum(self.y_high[row], corners.y_last)
        y = low + (u_N3[:, 2] * (high - low + 1)).astype(np.int64)
        return np.stack((x, y), axis=1)

    def _place(self, nth_N: Integers) -> Integers:
        """The n-th places, ``row * n_columns + column``."""
        run_N = self.n_before.searchsorted(nth_N, side="right") - 1
        place_N: Integers = self.run_starts[run_N] + nth_N - self.n_before[run_N]
        return place_N

    def _rank(self, place_N: Integers) -> Integers:
        """How many places come before each of ``row * n_columns + column``."""
        run_N = np.maximum(self.run_starts.searchsorted(place_N, side="right") - 1, 0)
        before_N = self.n_before[run_N]
        inside_N = np.maximum(place_N - self.run_starts[run_N], 0)
        rank_N: Integers = before_N + np.minimum(inside_N, self.n_before[run_N + 1] - before_N)
        return rank_N


def find_places(
    tissue_mask: NDArray[np.bool_],
    *,
    slide_size: tuple[int, int],
    per_mask_px: float,
    edge: float,
    min_tissue: float,
    margin: float = 0.0,
) -> Places:
    """Find the places where a tile holds at least ``min_tissue``.

    Args:
        tissue_mask: (H, W) bool covering the whole slide.
        slide_size: Width and height of level 0, pixels.
        per_mask_px: Level-0 pixels a mask pixel, at least 1.
        edge: Tile edge in level-0 pixels, need not be whole.
        min_tissue: Smallest tissue fraction, 0 to 1, counted on the mask pixels nearest the
            tile's edges.
        margin: Distance that tiles keep from the slide's edges, level-0 pixels.

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
    (x_low, x_high), (y_low, y_high) = (
        _corners(n, edge, per_mask_px=per_mask_px, margin=margin) for n in slide_size
    )
    is_place = _hold_enough(
        tissue_mask,
        _extents(y_low, y_high, edge, per_mask_px),
        _extents(x_low, x_high, edge, per_mask_px),
        min_tissue=min_tissue,
    )
    is_place &= (y_low <= y_high)[:, None] & (x_low <= x_high)
    starts, lengths = _runs(is_place)
    return Places(starts, np.append(0, lengths.cumsum()), x_low, x_high, y_low, y_high)


def _hold_enough(
    tissue_mask: NDArray[np.bool_], heights: Extents, widths: Extents, *, min_tissue: float
) -> NDArray[np.bool_]:
    """Whether the rectangles that begin at each mask pixel hold enough tissue, all its extents."""
    n_rows, n_columns = (len(next(iter(extents.values()), ())) for extents in (heights, widths))
    is_enough = np.ones((n_rows, n_columns), dtype=np.bool_)
    beyond = max(heights, default=0), max(widths, default=0)
    glass = np.zeros((n_rows + beyond[0], n_columns + beyond[1]), dtype=np.uint8)
    inside = tissue_mask[: glass.shape[0], : glass.shape[1]]
    glass[: inside.shape[0], : inside.shape[1]] = inside
    for height, of_row in heights.items():
        rows = _from_first_to_last(of_row)
        for width, of_column in widths.items():
            columns = _from_first_to_last(of_column)
            part = glass[rows.start : rows.stop + height, columns.start : columns.stop + width]
            kind = cv2.CV_16U if height * width < 1 << 16 else cv2.CV_32S  # 16 bits: twice as fast
            n_tissue = cv2.boxFilter(part, kind, (width, height), anchor=(0, 0), normalize=False)
            holds = n_tissue[:-height, :-width] >= ceil((min_tissue - ROUNDING) * height * width)
            holds |= ~(of_row[rows, None] & of_column[None, columns])
            is_enough[rows, columns] &= holds
    return is_enough


def _overlapping(low: Integers, high: Integers, first: int, last: int) -> slice:
    """The rows or columns with a corner from ``first`` to ``last``."""
    start = int(np.searchsorted(high, first))
    return slice(start, int(np.searchsorted(low, last, side="right")))


def _corners(
    length: int, edge: float, *, per_mask_px: float, margin: float
) -> tuple[Integers, Integers]:
    """First and last level-0 pixel nearest to each mask pixel from which a tile fits the slide.

    A pixel halfway between two mask pixels is left out, so that no rounding rule decides. Where
    the margin leaves a mask pixel none, the last comes before the first.
    """
    last = floor(length - edge - margin + ROUNDING)
    middle = np.arange(int(last / per_mask_px) + 2 if last >= 0 else 0)
    low = np.maximum(np.floor((middle - 0.5) * per_mask_px + ROUNDING) + 1, ceil(margin - ROUNDING))
    high = np.minimum(np.ceil((middle + 0.5) * per_mask_px - ROUNDING) - 1, last)
    n = int(np.flatnonzero(high >= low)[-1]) + 1 if (high >= low).any() else 0
    return low[:n].astype(np.int64), high[:n].astype(np.int64)


def _extents(low: Integers, high: Integers, edge: float, per_mask_px: float) -> Extents:
    """Extents of tiles in mask pixels, one or two, and which corners can have each."""
    extents: Extents = {}
    for corner in (low, high):
        far = np.rint((corner + edge) / per_mask_px).astype(np.int64)
        extent = np.where(low <= high, far - np.arange(len(far)), 0)
        for value in np.unique(extent[extent > 0]).tolist():
            extents[value] = extents.get(value, False) | (extent == value)
    return extents


def _from_first_to_last(is_in: NDArray[np.bool_]) -> slice:
    """The shortest slice that holds all that is True."""
    where = np.flatnonzero(is_in)
    return slice(int(where[0]), int(where[-1]) + 1)


def _runs(is_place: NDArray[np.bool_]) -> tuple[Integers, Integers]:
    """Starts, flattened, and lengths of the runs of True along rows."""
    rows, columns = is_place.shape
    walled = np.zeros((rows, columns + 2), dtype=np.bool_)
    walled[:, 1:-1] = is_place
    flat = walled.ravel()
    start, end = np.flatnonzero(flat[1:] != flat[:-1]).reshape(-1, 2).T
    return start - start // (columns + 2) * 2, end - start
