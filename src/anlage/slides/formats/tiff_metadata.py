"""What a TIFF says about itself besides its pixels: its vendor, its resolution."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree as ET

from anlage.slides.resolution import Axes, Stated

UM_PER_RESOLUTION_UNIT = {2: 25_400.0, 3: 10_000.0}  # inch, centimetre; 1 is "no unit"
UM_PER_OME_UNIT = {"m": 1e6, "cm": 1e4, "mm": 1e3, "µm": 1.0, "um": 1.0, "nm": 1e-3, "pm": 1e-6}


def vendor_of(page: Any) -> str:  # noqa: ANN401 - a tifffile page
    """Who wrote the file: "aperio", "ome" or "generic-tiff"."""
    if page.is_svs:
        return "aperio"
    return "ome" if page.is_ome else "generic-tiff"


def stated_by(page: Any) -> Stated:  # noqa: ANN401 - a tifffile page
    """What level 0's page says about the resolution."""
    tiff = _tiff_resolution(page)
    description = str(page.description)
    if page.is_svs:
        mpp = _aperio_number(description, "MPP")
        return Stated(
            vendor=None if mpp is None else (mpp, mpp),
            tiff=tiff,
            objective=_aperio_number(description, "AppMag"),
        )
    if page.is_ome:
        vendor, objective = _ome(description)
        return Stated(vendor=vendor, tiff=tiff, objective=objective)
    return Stated(tiff=tiff)


def _tiff_resolution(page: Any) -> Axes | None:  # noqa: ANN401
    um = UM_PER_RESOLUTION_UNIT.get(int(page.tags.valueof("ResolutionUnit", 2)))
    per_unit = [page.tags.valueof(name) for name in ("XResolution", "YResolution")]
    if um is None or None in per_unit:
        return None
    x, y = ((n * um, d) for d, n in per_unit)
    return (x[0] / x[1], y[0] / y[1]) if x[1] > 0 and y[1] > 0 else None


def _aperio_number(description: str, key: str) -> float | None:
    found = re.search(rf"\|\s*{key}\s*=\s*([-+.\deE]+)", description)
    return None if found is None else _number(found[1])


def _ome(description: str) -> tuple[Axes | None, float | None]:
    """Pixel size of the first image, and the first objective's power."""
    try:
        root = ET.fromstring(description.encode())  # noqa: S314 - no DOCTYPE: checked before
    except ET.ParseError:
        return None, None
    pixels, objective = root.find(".//{*}Image/{*}Pixels"), root.find(".//{*}Objective")
    axes = [_ome_um(pixels, axis) for axis in "XY"] if pixels is not None else [None]
    power = None if objective is None else _number(objective.get("NominalMagnification", ""))
    return (None if axes[0] is None or axes[1] is None else (axes[0], axes[1])), power


def _ome_um(pixels: ET.Element, axis: str) -> float | None:
    size = _number(pixels.get(f"PhysicalSize{axis}", ""))
    unit = UM_PER_OME_UNIT.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
    return None if size is None or unit is None else size * unit


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
