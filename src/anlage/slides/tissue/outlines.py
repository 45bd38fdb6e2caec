"""Outlines of a mask along the edges of its pixels, and masks from outlines.

Frame: mask pixels; pixel (row r, column c) is the square from (c, r) to (c + 1, r + 1), its centre
at (c + 0.5, r + 0.5). Shape suffixes: N corners of a ring, K corners of the mask in all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Ring = NDArray[np.float64]  # (N, 2) corners (x, y), not closed
Outline = list[Ring]  # the outer ring, then the holes
CROSSINGS_AT_ONCE = 4_000_000  # of edges and rows; some 300 MB

# What a grid point between four pixels (1 north-west, 2 north-east, 4 south-west, 8 south-east) is
# to a walk with the tissue on its right: (horizontal edge to the right of the point, vertical edge
# below it, leaves horizontally, the tissue pixel at (down, right) of the point). Where two tissue
# pixels touch by a corner only, the walk keeps them apart: two corners, the left one first.
CORNERS: dict[int, tuple[tuple[bool, bool, bool, tuple[int, int]], ...]] = {
    1: ((False, False, True, (-1, -1)),),
    2: ((True, False, False, (-1, 0)),),
    4: ((False, True, False, (0, -1)),),
    8: ((True, True, True, (0, 0)),),
    7: ((True, True, False, (-1, -1)),),
    11: ((False, True, True, (-1, 0)),),
    13: ((True, False, True, (0, -1)),),
    14: ((False, False, False, (0, 0)),),
    9: ((False, False, True, (-1, -1)), (True, True, True, (0, 0))),
    6: ((False, True, False, (0, -1)), (True, False, False, (-1, 0))),
}


def outlines_of(mask: Mask) -> list[Outline]:
    """The outline of every part of a mask, exactly along the edges of its pixels.

    A part is what hangs together by edges; where two parts, or a part and itself, touch by a corner
    only, the rings touch in that point and do not cross, so that every outline is a valid polygon.
    Outer rings turn from x towards y (positive area), holes the other way.

    Args:
        mask: (H, W) bool.

    Returns:
        One outline a part, in the order of their uppermost, then leftmost pixel.
    """
    x_K, y_K, next_K, part_K = _corners(mask)
    walks = _walks(next_K)
    is_pinched = _pinched(walks, x_K, y_K)
    outer: dict[int, Ring] = {}
    holes: dict[int, list[Ring]] = {}
    for walk, comes_back in zip(walks, is_pinched, strict=True):
        corners_N2 = np.stack([x_K[walk], y_K[walk]], axis=1).astype(np.float64)
        part = int(part_K[walk[0]])
        for ring in _simple_rings(corners_N2) if comes_back else [corners_N2]:
            if _doubled_area(ring) > 0:
                assert part not in outer
                outer[part] = ring
            else:
                holes.setdefault(part, []).append(ring)
    return [[ring, *holes.get(part, [])] for part, ring in outer.items()]


def _corners(mask: Mask) -> tuple[NDArray[np.int64], ...]:
    """Every corner of every outline: x, y, the index of the next one, its part; each (K,)."""
    padded = np.pad(mask, 1).view(np.uint8)
    code = padded[:-1, :-1] + 2 * padded[:-1, 1:] + 4 * padded[1:, :-1] + 8 * padded[1:, 1:]
    is_corner = np.zeros(16, dtype=np.bool_)
    is_corner[list(CORNERS)] = True
    y, x = np.nonzero(is_corner[code])
    n_here = np.where(np.isin(code[y, x], (6, 9)), 2, 1)
    y, x = np.repeat(y, n_here), np.repeat(x, n_here)
    is_second = np.zeros(len(y), dtype=np.intp)
    is_second[1:] = (y[1:] == y[:-1]) & (x[1:] == x[:-1])
    _, below, leaves_sideways, pixel_y, pixel_x = _table()[code[y, x], is_second].T
    # Along a row of grid points, edges run from the 1st corner to the 2nd, from the 3rd to the 4th;
    # and so along a column.
    in_row = np.arange(len(y)) ^ 1
    by_column = np.lexsort((below, y, x))
    in_column = np.empty_like(by_column)
    in_column[by_column] = by_column[np.arange(len(y)) ^ 1]
    following = np.where(leaves_sideways, in_row, in_column)
    _, parts = cv2.connectedComponents(mask.view(np.uint8), connectivity=4)
    return x, y, following, np.asarray(parts[y + pixel_y, x + pixel_x], dtype=np.int64)


def _table() -> NDArray[np.int64]:
    """``CORNERS`` as an array: by code, first or second corner, and value."""
    table = np.zeros((16, 2, 5), dtype=np.int64)
    for code, corners in CORNERS.items():
        for i, (to_right, below, leaves_sideways, pixel) in enumerate(corners):
            table[code, i] = (to_right, below, leaves_sideways, *pixel)
    return table


def _walks(next_K: NDArray[np.int64]) -> list[list[int]]:
    """The cycles of a permutation, each as its indices in order."""
    following, is_seen = next_K.tolist(), bytearray(len(next_K))
    walks = []
    for first in range(len(following)):
        if is_seen[first]:
            continue
        walk, i = [], first
        while not is_seen[i]:
            is_seen[i] = 1
            walk.append(i)
            i = following[i]
        walks.append(walk)
    return walks


def _pinched(
    walks: Sequence[Sequence[int]], x_K: NDArray[np.int64], y_K: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which walks come through a point twice: both corners of one grid point are theirs."""
    walk_K = np.empty(len(x_K), dtype=np.int64)
    walk_K[[i for walk in walks for i in walk]] = np.repeat(
        np.arange(len(walks)), [len(walk) for walk in walks]
    )
    is_same = (np.diff(x_K) == 0) & (np.diff(y_K) == 0) & (np.diff(walk_K) == 0)
    pinched = np.zeros(len(walks), dtype=np.bool_)
    pinched[walk_K[1:][is_same]] = True
    return pinched


def _simple_rings(corners_N2: Ring) -> Iterable[Ring]:
    """A walk that comes through a point twice, cut there into rings that do not."""
    path: list[tuple[float, ...]] = []
    place: dict[tuple[float, ...], int] = {}
    for point in map(tuple, corners_N2.tolist()):
        if point in place:
            loop = path[place[point] :]
            yield np.array(loop)
            for left in loop[1:]:
                del place[left]
            del path[place[point] + 1 :]
        else:
            place[point] = len(path)
            path.append(point)
    yield np.array(path)


def _doubled_area(ring: Ring) -> float:
    x, y = ring.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1))


def fill_outlines(outlines: Iterable[Sequence[Ring]], shape: tuple[int, int]) -> Mask:
    """The pixels whose centres lie inside any of the outlines.

    Inside an outline is what an odd number of its rings' edges separates from the outside, so a
    hole is a hole whichever way it turns. A centre on an edge counts if the tissue lies to its
    right or below. What lies outside the mask is cut off.

    Args:
        outlines: Each the rings of one polygon, (N, 2) float64 (x, y), not closed, mask pixels.
        shape: Height and width of the mask.

    Returns:
        (H, W) bool.
    """
    height, width = shape
    change = np.zeros((height, width + 1), dtype=np.int32)  # spans begun less spans ended
    edges = _edges(outlines, height)
    n_bands = max(1, int(edges.n_rows.sum() / CROSSINGS_AT_ONCE))
    for rows in np.array_split(np.arange(height), min(n_bands, height)):
        _add_spans(change, edges, (int(rows[0]), int(rows[-1]) + 1))
    np.cumsum(change, axis=1, out=change)
    return np.asarray(change[:, :width] > 0)


@dataclass(frozen=True, slots=True)
class _Edges:
    """The edges of many polygons, each with the rows whose centres it crosses.

    Attributes:
        start: (E, 2) float64 (x, y).
        end: (E, 2) float64.
        polygon: (E,) int64, whose edge it is.
        first: (E,) int64, first row crossed (a centre on the upper end counts).
        last: (E,) int64, row after the last (one on the lower end does not).
    """

    start: Ring
    end: Ring
    polygon: NDArray[np.int64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]

    @property
    def n_rows(self) -> NDArray[np.int64]:
        return self.last - self.first


def _edges(outlines: Iterable[Sequence[Ring]], height: int) -> _Edges:
    rings = [(i, ring) for i, outline in enumerate(outlines) for ring in outline]
    none = np.empty((0, 2))
    start = np.concatenate([none, *(ring for _, ring in rings)])
    end = np.concatenate([none, *(np.roll(ring, -1, axis=0) for _, ring in rings)])
    polygon = np.repeat(
        np.array([i for i, _ in rings], dtype=np.int64), [len(ring) for _, ring in rings]
    )
    upper, lower = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    first, last = (np.clip(np.ceil(y - 0.5), 0, height).astype(np.int64) for y in (upper, lower))
    return _Edges(start, end, polygon, first, last)


def _add_spans(change: NDArray[np.int32], edges: _Edges, rows: tuple[int, int]) -> None:
    """Add a band of rows: in a row, inside begins at every odd crossing, ends at every even one."""
    first, last = (np.clip(row, *rows) for row in (edges.first, edges.last))
    n_rows = last - first
    edge = np.repeat(np.arange(len(first)), n_rows)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(n_rows) - n_rows, n_rows) + first[edge]
    (x0, y0), (x1, y1) = edges.start[edge].T, edges.end[edge].T
    x = x0 + (row + 0.5 - y0) / (y1 - y0) * (x1 - x0)
    column = np.clip(np.ceil(x - 0.5), 0, change.shape[1] - 1).astype(np.int64)
    order = np.lexsort((column, row, edges.polygon[edge]))
    place = row[order] * change.shape[1] + column[order]
    np.add.at(change.reshape(-1), place[0::2], 1)
    np.add.at(change.reshape(-1), place[1::2], -1)
