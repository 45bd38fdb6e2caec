"""Tissue as GeoJSON polygons: ours for QuPath to open, and QuPath's (or anybody's) for us.

Frame: level-0 pixels, the origin in the slide's upper left corner, x before y, as QuPath has it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import numpy as np

from anlage.errors import TissueError
from anlage.files import write_text_whole
from anlage.geometry import Size, level0_px
from anlage.slides.masks import TissueMask, mask_shape
from anlage.slides.tissue.drawn_polygons import QUPATH, DrawnPolygons, Polygon
from anlage.slides.tissue.outlines import Ring, fill_outlines, outlines_of

CLASS = {"name": "Tissue", "color": [0, 150, 90]}
COORDINATE_DECIMALS = 3  # level-0 pixels; a mask pixel is at least one
MAX_KINDS = 5  # that an error names
MAX_OVERHANG = 0.1  # of the slide's longer side; beyond, the polygons are in another frame


def write_geojson(path: str | Path, tissue: TissueMask, *, slide_mpp: float) -> None:
    """Write a mask as polygons, one annotation a connected part, that QuPath opens.

    Outlines run exactly along the edges of mask pixels, holes included; reading the file at the
    mask's resolution gives the same mask. The last row and column may reach over the slide's edge,
    as they do in the mask.

    Args:
        path: File to write, by custom ``<slide_id>.geojson``.
        tissue: The mask.
        slide_mpp: Resolution of level 0, micrometres per pixel.
    """
    per_mask_px = level0_px(1, mpp=tissue.mpp, slide_mpp=slide_mpp)
    features = [
        {
            "type": "Feature",
            "geometry": {
                "type": "Polygon",
                "coordinates": [_closed(ring * per_mask_px) for ring in outline],
            },
            "properties": {
                "objectType": "annotation",
                "name": f"Tissue {number}",
                "classification": CLASS,
            },
        }
        for number, outline in enumerate(outlines_of(tissue.mask), start=1)
    ]
    collection = {"type": "FeatureCollection", "features": features}
    write_text_whole(path, json.dumps(collection, separators=(",", ":")) + "\n")


def _closed(ring: Ring) -> list[list[float]]:
    """Positions of a ring, its first again as its last; integers where all are whole."""
    rounded = np.round(np.concatenate([ring, ring[:1]]), COORDINATE_DECIMALS)
    whole = rounded.astype(np.int64)
    positions: list[list[float]] = (whole if (whole == rounded).all() else rounded).tolist()
    return positions


def read_geojson(
    path: str | Path,
    *,
    slide_size: Size,
    slide_mpp: float,
    mask_mpp: float,
    classes: Collection[str] | None = None,
) -> TissueMask:
    """Read the tissue that somebody drew.

    Counted are Polygons and MultiPolygons of annotations (QuPath's detections, cells and tiles are
    not), of the given classes or of all that QuPath itself does not ignore: names that end in ``*``
    or begin with "ignore" are left out. A mask pixel is tissue if its centre lies inside any of
    them, by the even-odd rule; what reaches over the slide's edge is cut off. Points and lines have
    no area and are passed over.

    Args:
        path: A FeatureCollection, a Feature, a list of Features, or a bare geometry.
        slide_size: Of level 0, pixels.
        slide_mpp: Resolution of level 0, micrometres per pixel.
        mask_mpp: Resolution of the mask to make, micrometres per pixel.
        classes: Names of the classes that are tissue; None for all but the ignored ones.

    Raises:
        TissueError: If the file is missing, above 256 MB, no GeoJSON or of an unknown geometry; if
            a ring is open, too short or not finite; if polygons lie outside the slide; or if no
            tissue is left.
    """
    drawn = DrawnPolygons(Path(path), classes=classes)
    found = list(drawn)
    if not found:
        raise TissueError(
            path, f"needs a polygon of tissue; got {_listed(drawn.left_out)}. {QUPATH}"
        )
    for polygon in found:
        _refuse_outside(path, polygon, slide_size, mask_mpp / slide_mpp)
    per_level0_px = level0_px(1, mpp=slide_mpp, slide_mpp=mask_mpp)
    shape = mask_shape(slide_size, slide_mpp=slide_mpp, mask_mpp=mask_mpp)
    mask = fill_outlines(([ring * per_level0_px for ring in rings] for _, rings in found), shape)
    if not mask.any():
        message = f"has polygons, but none over the centre of a {mask_mpp:g} µm mask pixel."
        raise TissueError(path, f"{message} Draw larger ones, or take a finer mask.")
    return TissueMask(mask, mask_mpp)


def _listed(counts: Counter[str]) -> str:
    """What was passed over instead, the most frequent first, in one line."""
    shown = [f"{n} of {kind}" for kind, n in counts.most_common(MAX_KINDS)]
    if len(counts) > MAX_KINDS:
        shown.append(f"and {len(counts) - MAX_KINDS} more")
    return ", ".join(shown) or "no feature"


def _refuse_outside(path: str | Path, polygon: Polygon, slide_size: Size, mask_px: float) -> None:
    """Refuse a polygon that does not touch the slide, or reaches far beyond it (level-0 pixels)."""
    corners = np.concatenate(polygon.rings)
    low, high = corners.min(axis=0), corners.max(axis=0)
    margin = max(MAX_OVERHANG * max(slide_size), mask_px)
    is_outside = (high <= 0).any() or (low >= slide_size).any()
    if is_outside or (low < -margin).any() or (high > np.add(slide_size, margin)).any():
        box = f"x {low[0]:g} to {high[0]:g}, y {low[1]:g} to {high[1]:g}"
        raise TissueError(
            path,
            f"{polygon.where} needs to lie on the slide ({slide_size[0]} x {slide_size[1]} px); "
            f"got {box}. Give coordinates in level-0 pixels, and the mask of this slide.",
        )
