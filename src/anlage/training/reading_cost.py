"""What it takes to read a tile: bytes, requests and a loader's time, from what was measured once.

``docs/benchmarks.md``, "Reading slides": tiles of 256 px at 0.5 µm from slides of 0.25 µm, whose
JPEG tiles have 240 px.
"""

from __future__ import annotations

from math import isqrt
from typing import NamedTuple

import numpy as np

from anlage.training.tile_source import MagnificationRange, TileSource

NATIVE_PX = 240
FIELD_PX = 512  # 256 px at 0.5 µm, in pixels of 0.25 µm
NATIVE_TILES = (FIELD_PX / NATIVE_PX + 1) ** 2  # 9.8 expected; 9.7 were counted
BYTES_OF_A_TILE = 93_000  # over HTTP, one tile a region
BYTES_OF_AN_INDEX = 660_000  # to open a slide over HTTP for the first time
REGION_SHARE = 3.7 / 9.7  # of native tiles, where one region gives 4 tiles or more
TILES_OF_A_THREAD = {1: 428.0, 4: 1_001.0, 16: 1_251.0}  # DCT-scaled, whole loader, by per_region
LEVEL_STEP = 4  # between levels of a pyramid
RANGE_POINTS = 256


class ReadingCost(NamedTuple):
    """What one tile takes, on average over the resolutions that are drawn.

    Attributes:
        n_bytes: Bytes read from storage.
        requests: Reads, at most: one for each row of native tiles that a region touches.
        tiles_per_s: Tiles a second of one loader thread.
        opening_bytes: Bytes read once for each slide.
        is_measured: Whether the loader's rate is one that was given.
    """

    n_bytes: float
    requests: float
    tiles_per_s: float
    opening_bytes: int
    is_measured: bool


def reading_cost(
    source: TileSource, *, size_px: int, slide_mpp: float, loader_rate: float | None = None
) -> ReadingCost:
    """What a tile takes to read, carried over from the tile that was measured.

    A tile that covers f pixels of its level touches (f / 240 + 1)^2 native tiles on average, in
    f / 240 + 1 rows; f is that of the coarsest level that is fine enough. Bytes and time go with
    the native tiles. A region of k tiles has sqrt(k) times that edge; what it saves in bytes is
    as measured, from 4 tiles on.

    Args:
        source: Which tiles are drawn.
        size_px: Their edge.
        slide_mpp: Resolution of the slides' finest level, µm per pixel.
        loader_rate: Measured tiles a second of one thread; None to carry over.
    """
    fields = [(_field_px(size_px, mpp, slide_mpp), share) for mpp, share in _drawn(source)]
    k = source.per_region
    native = sum(share * (f / NATIVE_PX + 1) ** 2 for f, share in fields) / NATIVE_TILES
    rows = sum(share * (isqrt(k) * f / NATIVE_PX + 1) / k for f, share in fields)
    thread = next(rate for most, rate in reversed(TILES_OF_A_THREAD.items()) if k >= most)
    return ReadingCost(
        n_bytes=BYTES_OF_A_TILE * native * (REGION_SHARE if k >= 4 else 1.0),
        requests=rows,
        tiles_per_s=thread / native if loader_rate is None else loader_rate,
        opening_bytes=BYTES_OF_AN_INDEX,
        is_measured=loader_rate is not None,
    )


def _field_px(size_px: int, mpp: float, slide_mpp: float) -> float:
    """Edge of a tile in pixels of the level it is read from."""
    level_mpp = slide_mpp
    while level_mpp * LEVEL_STEP <= mpp * 1.001:
        level_mpp *= LEVEL_STEP
    return size_px * mpp / level_mpp


def _drawn(source: TileSource) -> list[tuple[float, float]]:
    """Resolutions with their shares, which add up to 1."""
    drawn = source.magnifications
    if not isinstance(drawn, MagnificationRange):
        total = sum(drawn.values())
        return [(mpp, weight / total) for mpp, weight in drawn.items()]
    spaced = np.geomspace if drawn.law == "log" else np.linspace
    edges = spaced(drawn.low, drawn.high, 2 * RANGE_POINTS + 1)
    return [(float(mpp), 1 / RANGE_POINTS) for mpp in edges[1::2]]
