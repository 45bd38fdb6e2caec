"""The tissue of a whole slide, as indexing finds it."""

from __future__ import annotations

from anlage.slides.masks import TissueMask
from anlage.slides.overview import read_overview
from anlage.slides.reader import SlideReader
from anlage.slides.tissue import find_tissue


def tissue_of_slide(slide: SlideReader, *, mask_mpp: float = 8.0) -> TissueMask:
    """Read the overview, find its tissue."""
    pixels, mpp = read_overview(slide, mpp=mask_mpp)
    return TissueMask(find_tissue(pixels, mpp=mpp), mpp)
