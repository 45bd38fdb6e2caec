"""Find the tissue on a slide: several methods behind one callable, and plug-ins."""

from anlage.slides.tissue.finder import TissueFinder
from anlage.slides.tissue.methods import DEFAULT_METHOD, tissue_method, tissue_methods
from anlage.slides.tissue.on_slide import SlideTissue, find_slide_tissue
from anlage.slides.tissue.otsu import MIN_AREA_MM2, find_tissue

__all__ = [
    "DEFAULT_METHOD",
    "MIN_AREA_MM2",
    "SlideTissue",
    "TissueFinder",
    "find_slide_tissue",
    "find_tissue",
    "tissue_method",
    "tissue_methods",
]
