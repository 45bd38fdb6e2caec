"""The tissue of an open slide by any method, within bounded memory."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from math import ceil

import numpy as np

from anlage.slides.masks import MAX_MASK_PX, SummedArea, TissueMask, bounded_mask_mpp
from anlage.slides.overview import read_overview
from anlage.slides.reader import SlideReader
from anlage.slides.tissue.blocks import find_by_blocks
from anlage.slides.tissue.finder import Pixels, TissueFinder
from anlage.slides.tissue.methods import DEFAULT_METHOD, tissue_method

LOGGER = logging.getLogger(__name__)
MUCH_LOST = 0.5


@dataclass(frozen=True, slots=True)
class SlideTissue:
    """The tissue of a slide, and the picture from which thumbnails can be made.

    Attributes:
        tissue: The mask, covering the whole slide.
        overview: (H, W, 3) uint8 RGB, the whole slide.
        overview_mpp: Its resolution, micrometres per pixel.
        warning: What a person should look at, for the log; None if there is nothing.
    """

    tissue: TissueMask
    overview: Pixels
    overview_mpp: float
    warning: str | None = None


def find_slide_tissue(
    slide: SlideReader, finder: TissueFinder | None = None, *, mask_mpp: float = 8.0
) -> SlideTissue:
    """Find the tissue of a slide.

    The mask's resolution is the wanted one, or what the method has to see where that is coarser,
    or the slide's own where that is coarser still; and never so fine that the mask (and the picture
    it is made from) would have more than 64 million pixels. ``tissue.mpp`` says which it became.
    A method that wants blocks sees them at its own resolution (``find_by_blocks``).

    Args:
        slide: An open slide with a resolution.
        finder: The method; Otsu's (``find_tissue``) if None.
        mask_mpp: Wanted resolution of the mask, micrometres per pixel, > 0.

    Returns:
        The mask and an overview; with a warning where a method other than Otsu's leaves out more
        than half of the tissue that Otsu's finds: it may have taken a stain or a blur for dirt.

    Raises:
        SlideError: If the slide has no resolution or cannot be read.
        TissueError: If the method fails.
    """
    method = finder or tissue_method(DEFAULT_METHOD)
    sees_whole = method.block_px is None
    seen_mpp = method.mpp if sees_whole and method.mpp is not None else mask_mpp
    overview, overview_mpp = read_overview(slide, mpp=_bounded_mpp(slide, seen_mpp))
    wanted_mpp = max(overview_mpp, mask_mpp, method.mpp or 0)
    if sees_whole:
        tissue = coarser(TissueMask(method(overview, overview_mpp), overview_mpp), wanted_mpp)
    else:
        tissue = find_by_blocks(slide, method, mask_mpp=wanted_mpp)
    if method.name == DEFAULT_METHOD:
        return SlideTissue(tissue, overview, overview_mpp)
    by_otsu = TissueMask(tissue_method(DEFAULT_METHOD)(overview, overview_mpp), overview_mpp)
    lost = lost_share(tissue, by_otsu)
    warning = None
    if lost > MUCH_LOST:
        warning = (
            f"tissue method {method.name!r} leaves out {lost:.0%} of the tissue that Otsu's finds. "
            "Look at its mask (`anlage masks show`) before you use it."
        )
    return SlideTissue(tissue, overview, overview_mpp, warning)


def _bounded_mpp(slide: SlideReader, mpp: float) -> float:
    bounded = bounded_mask_mpp(slide.size, slide_mpp=slide.mpp, mask_mpp=mpp)
    if bounded > max(mpp, slide.mpp):
        LOGGER.info(
            "%s: its mask has %.3g mpp; at %g it would have more than %d million pixels",
            *(slide.path, bounded, mpp, MAX_MASK_PX // 10**6),
        )
    return bounded


def coarser(tissue: TissueMask, mpp: float) -> TissueMask:
    """The mask at a coarser resolution: tissue where at least half of a pixel is.

    Args:
        tissue: A mask.
        mpp: Wanted resolution, micrometres per pixel, not below the mask's.
    """
    if mpp == tissue.mpp:
        return tissue
    per_px = mpp / tissue.mpp
    ends = []
    for extent in tissue.mask.shape:
        edge = np.arange(ceil(extent / per_px - 1e-6) + 1) * per_px
        ends.append((np.minimum(edge[:-1], extent - 1), np.minimum(edge[1:], extent)))
    (top, bottom), (left, right) = ends
    share = SummedArea(tissue.mask).fraction(left, top[:, None], right, bottom[:, None])
    return TissueMask(share >= 0.5, mpp)


def lost_share(tissue: TissueMask, reference: TissueMask) -> float:
    """Share of a reference's tissue that a mask of the same slide does not have; 0 if it has none.

    Each pixel of the reference is looked up at its centre; the two may differ in resolution.
    """
    rows, columns = (
        np.minimum(((np.arange(n) + 0.5) * reference.mpp / tissue.mpp).astype(np.int64), m - 1)
        for n, m in zip(reference.mask.shape, tissue.mask.shape, strict=True)
    )
    n_reference = int(np.count_nonzero(reference.mask))
    is_lost = reference.mask & ~tissue.mask[np.ix_(rows, columns)]
    return int(np.count_nonzero(is_lost)) / n_reference if n_reference else 0.0
