"""What drawing takes from a catalogue's columns: names, and the resolutions slides can give.

Shape suffixes: S slides.
"""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from anlage.errors import TrainingError
from anlage.slides.catalogue import Catalogue
from anlage.slides.levels import TOLERANCE
from anlage.tiles.slide_choice import SlideChoice

LOGGER = logging.getLogger(__name__)

Floats = NDArray[np.float64]


class SlideNames:
    """The slide_id of each row of a catalogue."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._names = catalogue.column("slide_id")

    def __call__(self, row: int) -> str:
        """Name of one row."""
        return str(self._names[row].as_py())


def mpp_ranges(
    catalogue: Catalogue, *, size_px: int, view_mpp_factors: tuple[float, ...]
) -> tuple[Floats, Floats]:
    """The finest and the coarsest tiles that slides can give, (S,) float64 µm per pixel each."""
    mpp_S = catalogue.column("mpp").to_numpy()
    width_S, height_S = (catalogue.column(name).to_numpy() for name in ("width", "height"))
    finest_S = mpp_S / ((1 + TOLERANCE) * min(view_mpp_factors))
    coarsest_S = np.minimum(width_S, height_S) * mpp_S / (size_px * max(view_mpp_factors))
    return finest_S, coarsest_S


def refuse_uncovered(catalogue: Catalogue, choice: SlideChoice, *, size_px: int) -> None:
    """Refuse resolutions that no slide can give; log how many slides can give none.

    Raises:
        TrainingError: If a resolution has no slide.
    """
    if len(choice.uncovered):
        mpps = ", ".join(f"{mpp:g}" for mpp in choice.uncovered[:5])
        msg = (
            f"needs slides that give {size_px} px tiles at {mpps} mpp; all {len(catalogue)} are "
            "coarser, smaller than a tile or without tissue. Leave this mpp out, lower the tile "
            "size, or add slides."
        )
        raise TrainingError(catalogue.path, msg)
    left_out = np.flatnonzero(~choice.is_usable)
    if len(left_out):
        names = SlideNames(catalogue)
        some = ", ".join(names(row) for row in left_out[:5].tolist())
        told = "%d of %d slides are too coarse, too small or without tissue for every mpp (%s%s)"
        more = ", ..." if len(left_out) > 5 else ""
        LOGGER.warning(told, len(left_out), len(catalogue), some, more)
