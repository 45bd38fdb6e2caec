"""Scores of a slide's tiles: raw weights, where they lie, and the rank by which they are coloured.

Shape suffixes: L tiles of the slide. Frame: level-0 pixels of the slide, x before y.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anlage.geometry import Size
from anlage.slides.colour import Colour

PLACE_COLUMNS = ("slide_id", "x", "y", "edge_level0_px")  # of a table of scores, before them
FLAT = 1e-5  # spread of weights over the largest: below it they differ by rounding alone


@dataclass(frozen=True, kw_only=True, eq=False)
class TileScore:
    """One score of each tile.

    Attributes:
        name: Of its column and files, such as ``attention`` or ``layer_12_head_03``.
        title: In words.
        weight_L: (L,) float32, >= 0, as the model gave it; 0 where it gave nothing.
        is_of_head: Whether it is one head of several that are shown side by side.
    """

    name: str
    title: str
    weight_L: NDArray[np.float32]
    is_of_head: bool = False

    @cached_property
    def rank(self) -> NDArray[np.float64]:
        """(L,) percentile rank, above 0 to 1; NaN where the weight is 0. See `percentile_rank`."""
        return percentile_rank(self.weight_L)

    @property
    def n_weighted(self) -> int:
        """Tiles whose weight is above 0."""
        return int(np.count_nonzero(self.weight_L))

    @property
    def is_flat(self) -> bool:
        """Whether the tiles that have weight have the same, but for rounding."""
        return is_flat(self.weight_L)


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredTiles:
    """The tiles of one slide and their scores.

    Attributes:
        slide_id: The slide's name.
        corner_L2: (L, 2) int64 upper-left corners (x, y), level-0 pixels.
        edge_level0_px: Edge of a tile, level-0 pixels, not rounded.
        slide_size: Of level 0, pixels.
        slide_mpp: Resolution of level 0, micrometres per pixel.
        tile_px: Edge of a tile as the tile encoder saw it, pixels at ``mpp``.
        mpp: That resolution, micrometres per pixel.
        colour: Whether the tile encoder saw the pixels as stored or in sRGB.
        scores: One or more; of heads, and of others, which come first.

    Raises:
        ValueError: If two scores have one name, or one has that of a column of places.
    """

    slide_id: str
    corner_L2: NDArray[np.int64]
    edge_level0_px: float
    slide_size: Size
    slide_mpp: float
    tile_px: int
    mpp: float
    colour: Colour
    scores: tuple[TileScore, ...]

    def __post_init__(self) -> None:
        taken = set(PLACE_COLUMNS)
        for score in self.scores:
            if score.name in taken:
                msg = (
                    "ScoredTiles: needs a name of its own for each score, and none of "
                    f"{', '.join(PLACE_COLUMNS)}; got {score.name!r} again. Rename it."
                )
                raise ValueError(msg)
            taken.add(score.name)

    def __len__(self) -> int:
        return len(self.corner_L2)

    @property
    def main(self) -> tuple[TileScore, ...]:
        """The scores that are not of one head: each gets pictures of its own."""
        return tuple(score for score in self.scores if not score.is_of_head)

    @property
    def heads(self) -> tuple[TileScore, ...]:
        """The scores of single heads, shown side by side."""
        return tuple(score for score in self.scores if score.is_of_head)


def percentile_rank(weight_L: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Which share of the tiles that have weight has at most as much, ties sharing their mean rank.

    Attention spans orders of magnitude, so that a linear scale shows a few tiles and black; ranks
    show all, and say nothing of how much larger a weight is than another. Weights that differ by
    rounding alone all count as ties: ranks of noise would look like a pattern.

    Args:
        weight_L: (L,) weights, >= 0.

    Returns:
        (L,) float64, above 0 to 1; NaN where the weight is 0.

    Source: Lu et al. 2021, CLAM, arXiv:2004.09666, and its code: percentiles for colours. There a
        weight of 0 is ranked as well.
    """
    rank_L = np.full(len(weight_L), np.nan)
    has_weight_L = weight_L > 0
    weights = weight_L[has_weight_L]
    if is_flat(weight_L):
        weights = np.ones_like(weights)
    _, place, n_tied = np.unique(weights, return_inverse=True, return_counts=True)
    mean_rank = n_tied.cumsum() - (n_tied - 1) / 2
    rank_L[has_weight_L] = mean_rank[place] / max(len(weights), 1)
    return rank_L


def is_flat(weight_L: NDArray[np.floating[Any]]) -> bool:
    """Whether the weights above 0 are the same, but for rounding (1e-5 of the largest)."""
    weights = weight_L[weight_L > 0]
    return len(weights) == 0 or float(weights.max() - weights.min()) <= FLAT * float(weights.max())


def top_and_bottom(
    weight_L: NDArray[np.floating[Any]], *, n: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tiles with the most weight, and those with the least above 0.

    Args:
        weight_L: (L,) weights, >= 0; of equal ones the tile that comes first in the bag is first.
        n: Most of each; no tile is in both, the top ones having the first choice.

    Returns:
        Rows of the top tiles, the largest weight first; of the bottom ones, the smallest first.
    """
    rows = np.flatnonzero(weight_L > 0)
    falling = rows[np.argsort(-weight_L[rows], kind="stable")]
    n_bottom = min(n, max(len(falling) - n, 0))
    return falling[:n], falling[len(falling) - n_bottom :][::-1]


def share_of_top(weight_L: NDArray[np.floating[Any]], *, share: float = 0.01) -> float:
    """What the tiles with the most weight hold of all of it, as a share.

    Args:
        weight_L: (L,) weights, >= 0, not all 0.
        share: Of the tiles; at least one is taken.
    """
    n = max(round(share * len(weight_L)), 1)
    falling = np.sort(weight_L.astype(np.float64))[::-1]
    return float(falling[:n].sum() / falling.sum())
