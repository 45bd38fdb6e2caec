"""Tiles as GeoJSON: each rectangle its corner and edge, each score a measurement, five classes."""

import json
from itertools import pairwise

import numpy as np
from scored_tiles import scored

from anlage.explain.slide_geojson import write_geojson


def features_of(path):
    made = json.loads(path.read_text())
    assert made["type"] == "FeatureCollection"
    return made["features"]


def test_rectangles_are_corners_and_edges(tmp_path, generator) -> None:
    corners = generator.integers(0, 400, (30, 2))
    tiles = scored(corners, generator.random(30) + 0.01, edge=57.25)
    write_geojson(tmp_path / "s.geojson", tiles)
    features = features_of(tmp_path / "s.geojson")
    assert len(features) == 30
    for feature, (x, y) in zip(features, corners.tolist(), strict=True):
        (ring,) = feature["geometry"]["coordinates"]
        assert feature["type"] == "Feature"
        assert feature["geometry"]["type"] == "Polygon"
        assert ring[0] == ring[-1] == [x, y]
        assert len(ring) == 5
        assert ring[2] == [x + 57.25, y + 57.25]
        area = sum(a[0] * b[1] - b[0] * a[1] for a, b in pairwise(ring)) / 2
        assert area == 57.25**2


def test_measurements_and_classes(tmp_path) -> None:
    weights = np.array([0.0, *np.arange(1, 11)]) / 55
    tiles = scored(np.zeros((11, 2)), weights, heads=[weights[::-1]])
    write_geojson(tmp_path / "s.geojson", tiles)
    told = [feature["properties"] for feature in features_of(tmp_path / "s.geojson")]
    assert {entry["objectType"] for entry in told} == {"tile"}
    for row, entry in enumerate(told):
        measured = entry["measurements"]
        np.testing.assert_allclose(measured["attention"], weights[row], rtol=1e-5)
        np.testing.assert_allclose(measured["head_0"], weights[10 - row], rtol=1e-5)
    names = [entry["classification"]["name"] for entry in told]
    fifths = ["0-20%", "20-40%", "40-60%", "60-80%", "80-100%"]
    assert names[0] == "attention none"
    assert names[1:] == [f"attention {fifth}" for fifth in fifths for _ in range(2)]
    assert "attention percentile" not in told[0]["measurements"]
    assert told[10]["measurements"]["attention percentile"] == 100
    colours = {entry["classification"]["name"]: entry["classification"]["color"] for entry in told}
    assert len({tuple(colour) for colour in colours.values()}) == 6
    assert all(0 <= part <= 255 for colour in colours.values() for part in colour)
