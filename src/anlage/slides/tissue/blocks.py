"""Run a tissue method over a slide in blocks, so that no picture of the whole is ever held."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anlage.geometry import level0_px
from anlage.slides.levels import read_tile
from anlage.slides.masks import TissueMask, mask_shape
from anlage.slides.reader import SlideReader
from anlage.slides.rectangle import spans
from anlage.slides.tissue.finder import Mask, TissueFinder


def find_by_blocks(slide: SlideReader, finder: TissueFinder, *, mask_mpp: float) -> TissueMask:
    """The tissue of a slide by a method that sees one block after another.

    Each block is read at the method's own resolution with a halo of its context (white beyond the
    slide), and what is found in the halo is thrown away: a method that looks no further than its
    halo finds what it would on the whole picture. A mask pixel is tissue if at least half of the
    found pixels whose centres lie in it are.

    Args:
        slide: An open slide with a resolution, at most 2 % coarser than the method's.
        finder: A method with ``mpp`` and ``block_px``.
        mask_mpp: Resolution of the mask, micrometres per pixel, >= the method's.

    Raises:
        ResolutionError: If the slide is too coarse for the method.
        SlideError: If the pixels are damaged.
        TissueError: If the method fails.
        ValueError: If the method wants no blocks, or the mask would be finer than what it sees.
    """
    if finder.mpp is None or finder.block_px is None or mask_mpp < finder.mpp:
        msg = (
            f"find_by_blocks needs a method with mpp and block_px, and a mask no finer than it; "
            f"got {finder} and mask_mpp={mask_mpp}."
        )
        raise ValueError(msg)
    shape, seen_shape = (
        mask_shape(slide.size, slide_mpp=slide.mpp, mask_mpp=mpp) for mpp in (mask_mpp, finder.mpp)
    )
    rows, columns = (
        _mask_pixel(n, n_mask, per_mask_px=mask_mpp / finder.mpp)
        for n, n_mask in zip(seen_shape, shape, strict=True)
    )
    n_tissue = np.zeros(shape, dtype=np.int32)
    for top, bottom in spans(len(rows), finder.block_px):
        for left, right in spans(len(columns), finder.block_px):
            block = _find_block(slide, finder, left, top)[: bottom - top, : right - left]
            _count_into(n_tissue, block, rows[top:bottom], columns[left:right])
    n_rows, n_columns = (
        np.bincount(a, minlength=n) for a, n in zip((rows, columns), shape, strict=True)
    )
    is_tissue = 2 * n_tissue >= np.maximum(np.outer(n_rows, n_columns), 1)
    return TissueMask(is_tissue, mask_mpp)


def _mask_pixel(n_px: int, n_mask_px: int, *, per_mask_px: float) -> NDArray[np.int64]:
    """The mask pixel in which the centre of each found pixel lies, (n_px,)."""
    pixel = np.floor((np.arange(n_px) + 0.5) / per_mask_px).astype(np.int64)
    return np.asarray(np.minimum(pixel, n_mask_px - 1), dtype=np.int64)


def _find_block(slide: SlideReader, finder: TissueFinder, left: int, top: int) -> Mask:
    """What the method finds in one block whose corner is in pixels at its mpp; the halo cut off."""
    assert finder.mpp is not None
    assert finder.block_px is not None
    halo, size = finder.halo_px, finder.block_px
    x, y = (
        round(level0_px(edge - halo, mpp=finder.mpp, slide_mpp=slide.mpp)) for edge in (left, top)
    )
    pixels = read_tile(slide, x, y, size_px=size + 2 * halo, mpp=finder.mpp)
    return finder(pixels, finder.mpp)[halo : halo + size, halo : halo + size]


def _count_into(
    n_tissue: NDArray[np.int32], block: Mask, rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> None:
    """Add a block's tissue pixels to the mask pixels in which they lie."""
    row_starts = np.flatnonzero(np.diff(rows, prepend=-1))
    column_starts = np.flatnonzero(np.diff(columns, prepend=-1))
    by_row = np.add.reduceat(block, row_starts, axis=0, dtype=np.int32)
    counts = np.add.reduceat(by_row, column_starts, axis=1)
    n_tissue[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] += counts
