"""The regular grid of tiles with enough tissue."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anlage.geometry import level0_px
from anlage.slides.masks import SummedArea
from anlage.tiles.spec import TileSpec

ROUNDING = 1e-6  # pixels: what float arithmetic may be off by, far below what one can see


def tile_grid(
    tissue_mask: NDArray[np.bool_],
    *,
    mask_mpp: float,
    slide_mpp: float,
    spec: TileSpec,
    slide_size: tuple[int, int] | None = None,
) -> NDArray[np.int64]:
    """Top-left corners of every tile that holds enough tissue.

    Tiles lie on one regular grid from the slide's origin and never cross its right or bottom edge;
    corners between two pixels move to the upper left one. A tile's tissue fraction is counted on
    the mask pixels nearest its edges, from one summed-area table, with no loop over tiles.

    Args:
        tissue_mask: (H, W) bool, True on tissue, covering the whole slide.
        mask_mpp: Resolution of the mask, micrometres per pixel.
        slide_mpp: Resolution of level 0, micrometres per pixel.
        spec: Tile size, target resolution, stride and tissue threshold.
        slide_size: Width and height of level 0, pixels. Without it the mask's extent, which may
            reach over the slide's edge by a part of a mask pixel.

    Returns:
        (N, 2) int64 corners (x, y) in level-0 pixels, in row-major order. N may be 0.

    Raises:
        ValueError: If a tile covers less than one mask pixel.
    """
    per_mask_px = level0_px(1, mpp=mask_mpp, slide_mpp=slide_mpp)
    edge = level0_px(spec.size_px, mpp=spec.mpp, slide_mpp=slide_mpp)
    step = level0_px(spec.stride_px, mpp=spec.mpp, slide_mpp=slide_mpp)
    refuse_coarse_mask("tile_grid", edge=edge, per_mask_px=per_mask_px, mask_mpp=mask_mpp)
    mask_height, mask_width = tissue_mask.shape
    width, height = slide_size or (mask_width * per_mask_px, mask_height * per_mask_px)
    x, y = _starts(width, edge, step), _starts(height, edge, step)
    if len(x) == 0 or len(y) == 0:
        return np.empty((0, 2), dtype=np.int64)
    fraction = SummedArea(tissue_mask).fraction(
        *(x / per_mask_px, y[:, None] / per_mask_px),
        *((x + edge) / per_mask_px, (y[:, None] + edge) / per_mask_px),
    )
    row, column = np.nonzero(fraction >= spec.min_tissue - ROUNDING)
    return np.stack([x[column], y[row]], axis=1)


def refuse_coarse_mask(who: str, *, edge: float, per_mask_px: float, mask_mpp: float) -> None:
    """Raise ValueError if a tile of ``edge`` level-0 pixels covers less than one mask pixel."""
    if edge < per_mask_px * (1 - ROUNDING):
        finest = mask_mpp * edge / per_mask_px
        msg = (
            f"{who}: needs a mask that resolves a tile; got a tile of {finest:g} µm, which spans "
            f"{edge / per_mask_px:.2f} pixels of a {mask_mpp:g} mpp mask. "
            f"Compute the mask at {finest:g} mpp or finer."
        )
        raise ValueError(msg)


def _starts(length: float, edge: float, step: float) -> NDArray[np.int64]:
    """First pixels, (n,) int64, of the tiles that fit into ``length``."""
    n = int((length - edge + ROUNDING) // step) + 1 if length - edge + ROUNDING >= 0 else 0
    starts: NDArray[np.int64] = np.floor(np.arange(n) * step + ROUNDING).astype(np.int64)
    return starts
