"""Scored tiles of a slide that is not there, for tests."""

from __future__ import annotations

import numpy as np

from anlage.explain.slide_scores import ScoredTiles, TileScore
from anlage.geometry import Size


def scored(
    corners,
    weights,
    *,
    edge: float = 64.0,
    size: tuple[int, int] = (500, 390),
    mpp: float = 0.5,
    heads=(),
    tile_px: int = 32,
) -> ScoredTiles:
    """Tiles with one score, and perhaps some of heads."""

    def score(name, values, *, is_of_head):
        weight_L = np.asarray(values, np.float32)
        return TileScore(name=name, title=name, weight_L=weight_L, is_of_head=is_of_head)

    scores = [score("attention", weights, is_of_head=False)]
    scores += [score(f"head_{n}", values, is_of_head=True) for n, values in enumerate(heads)]
    return ScoredTiles(
        slide_id="s",
        corner_L2=np.asarray(corners, np.int64).reshape(-1, 2),
        edge_level0_px=edge,
        slide_size=Size(*size),
        slide_mpp=mpp,
        tile_px=tile_px,
        mpp=edge * mpp / tile_px,
        colour="stored",
        scores=tuple(scores),
    )
