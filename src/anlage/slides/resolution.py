"""How large a slide's pixels are, and who says so."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from anlage.errors import ResolutionError

Axes = tuple[float, float]
Source = Literal["catalogue", "vendor", "tiff", "objective"]

SANE = (0.01, 1000.0)  # µm per pixel; a reduced copy of a slide may well have 30
SANE_TIFF = (0.05, 20.0)  # the TIFF tag often holds a printer's 72 or 96 dpi instead
MAX_ANISOTROPY = 0.01
OBJECTIVE_UM = 10.0  # a 10x objective gives about 1 µm per pixel
OVERRIDE = "Add an `mpp` column to the labels file or catalogue for this slide, or pass mpp=..."


@dataclass(frozen=True)
class Resolution:
    """Resolution of a slide's level 0.

    Attributes:
        mpp: Micrometres per pixel, > 0.
        source: "catalogue" (the user's override), "vendor" (the scanner's own tag), "tiff" (the
            TIFF resolution tags) or "objective" (10 / power: an estimate).
    """

    mpp: float
    source: Source


@dataclass(frozen=True)
class Stated:
    """What a slide's file states about its resolution; None where it is silent.

    Attributes:
        vendor: (x, y) micrometres per pixel by the scanner's own tag.
        tiff: (x, y) micrometres per pixel by the TIFF resolution tags.
        objective: Objective power, e.g. 20 or 40.
    """

    vendor: Axes | None = None
    tiff: Axes | None = None
    objective: float | None = None


def find_resolution(
    path: str, stated: Stated, *, override: float | None
) -> Resolution | ResolutionError:
    """The resolution by the first source that has one, or the error that says why none is usable.

    Order: override, vendor tag, TIFF resolution, objective power. A TIFF resolution outside
    0.05 to 20 µm per pixel is taken for a printer's and passed over; any other absurd or
    anisotropic (> 1 %) value is refused rather than passed over: the file contradicts itself.

    Args:
        path: The slide, for the error.
        stated: What the file says.
        override: The user's or the catalogue's value, micrometres per pixel.

    Raises:
        ResolutionError: If the override itself is absurd.
    """
    if override is not None:
        if not is_sane(override):
            raise _refused(path, f"an override of {override:g}")
        return Resolution(override, "catalogue")
    for source, axes in _by_preference(stated):
        x, y = axes
        if not (is_sane(x) and is_sane(y)):
            return _refused(path, f"x={x:g}, y={y:g} by its {source} tag")
        if abs(x - y) > MAX_ANISOTROPY * min(x, y):
            rule = "needs square pixels (to within 1 %)"
            got = f"mpp x={x:g}, y={y:g} by its {source} tag"
            return ResolutionError(path, f"{rule}; got {got}. {OVERRIDE}")
        return Resolution((x + y) / 2, source)
    return ResolutionError(path, f"says nothing usable about its mpp. {OVERRIDE}")


def is_sane(mpp: float) -> bool:
    """True if a slide may have this resolution, micrometres per pixel."""
    return math.isfinite(mpp) and SANE[0] <= mpp <= SANE[1]


def _by_preference(stated: Stated) -> Iterator[tuple[Source, Axes]]:
    if stated.vendor is not None:
        yield "vendor", stated.vendor
    if stated.tiff is not None and all(SANE_TIFF[0] <= v <= SANE_TIFF[1] for v in stated.tiff):
        yield "tiff", stated.tiff
    if stated.objective is not None and stated.objective > 0:
        mpp = OBJECTIVE_UM / stated.objective
        yield "objective", (mpp, mpp)


def _refused(path: str, got: str) -> ResolutionError:
    rule = f"needs an mpp from {SANE[0]:g} to {SANE[1]:g} µm per pixel"
    return ResolutionError(path, f"{rule}; got {got}. {OVERRIDE}")
