"""Scored tiles as GeoJSON for QuPath: one tile object each, with its scores as measurements.

Shape suffixes: L tiles of the slide. Frame: level-0 pixels, the origin in the slide's upper left
corner, x before y, as QuPath has it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from anlage.explain.slide_heat import WITHOUT_WEIGHT, colours_of
from anlage.explain.slide_scores import ScoredTiles, TileScore
from anlage.files import replace_whole

N_CLASSES = 5  # of equal numbers of tiles
DIGITS = 6  # of a measurement


def write_geojson(path: Path, tiles: ScoredTiles) -> None:
    """Write a feature for each tile, a line each, that QuPath 0.4 and later open.

    Each is a tile object with every score and the percentile of the first as measurements, so that
    QuPath's measurement maps colour by any of them; its class is the fifth of the tiles in which
    the first score puts it.

    Args:
        path: File to write, by custom ``<slide_id>.geojson``.
        tiles: The tiles.
    """
    with replace_whole(path) as beside, beside.open("w", encoding="utf-8") as file:
        file.write('{"type":"FeatureCollection","features":[\n')
        for number, feature in enumerate(_features(tiles)):
            file.write(",\n" if number else "")
            file.write(json.dumps(feature, separators=(",", ":"), allow_nan=False))
        file.write("\n]}\n")


def rank_classes(score: TileScore) -> list[dict[str, Any]]:
    """QuPath's classes: fifths of the tiles, smallest weights first, then those without weight."""
    edges = np.linspace(0, 100, N_CLASSES + 1)
    colours = colours_of((np.arange(N_CLASSES) + 0.5) / N_CLASSES).tolist()
    fifths = [
        {"name": f"{score.name} {low:.0f}-{high:.0f}%", "color": colour}
        for low, high, colour in zip(edges[:-1], edges[1:], colours, strict=True)
    ]
    return [*fifths, {"name": f"{score.name} none", "color": list(WITHOUT_WEIGHT)}]


def _features(tiles: ScoredTiles) -> Iterator[dict[str, Any]]:
    first = tiles.scores[0]
    classes = rank_classes(first)
    fifth_L = np.ceil(np.nan_to_num(first.rank, nan=2.0) * N_CLASSES - 1e-9).astype(int) - 1
    fifth_L = np.minimum(fifth_L, N_CLASSES)
    edge = tiles.edge_level0_px
    for row, (x, y) in enumerate(tiles.corner_L2.tolist()):
        right, bottom = x + edge, y + edge
        ring = [[x, y], [right, y], [right, bottom], [x, bottom], [x, y]]
        measured = {score.name: float(score.weight_L[row]) for score in tiles.scores}
        if not np.isnan(first.rank[row]):
            measured[f"{first.name} percentile"] = 100 * float(first.rank[row])
        yield {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {
                "objectType": "tile",
                "classification": classes[fifth_L[row]],
                "measurements": {k: float(f"{v:.{DIGITS}g}") for k, v in measured.items()},
            },
        }
