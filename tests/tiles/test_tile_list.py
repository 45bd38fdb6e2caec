"""Tile lists are what was written, from us or anyone; unusable ones are refused with the reason."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anlage.errors import CatalogueError
from anlage.tiles.tile_list import TileList, read_tile_list, write_tile_list

COLUMNS = {"slide_id": ["b", "a", "b"], "x": [1, 2, 3], "y": [4, 5, 6], "mpp": [0.5] * 3}
PLAIN = {**COLUMNS, "tile_px": [224] * 3}


def a_list(**changes: object) -> TileList:
    tiles = TileList(
        slide_ids=("a", "b"),
        slide_N=np.array([1, 0, 1]),
        corner_N2=np.array([[1, 4], [2, 5], [3, 6]]),
        mpp_N=np.full(3, 0.5),
        tile_px_N=np.full(3, 224),
        weight_N=np.array([1.0, 0.0, 2.5]),
        cluster_NT=np.array([[0, 3], [1, 0], [0, 4]]),
        about={"seed": 7},
    )
    return replace(tiles, **changes)


def places(tiles: TileList) -> list[tuple[object, ...]]:
    slides = [tiles.slide_ids[slide] for slide in tiles.slide_N]
    values = (tiles.corner_N2.tolist(), tiles.mpp_N, tiles.tile_px_N, tiles.weight_N)
    return [(s, *c, m, p, w) for s, c, m, p, w in zip(slides, *values, strict=True)]


def written(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    tiles = a_list()
    write_tile_list(tmp_path / "t.parquet", tiles)
    found = read_tile_list(tmp_path / "t.parquet")
    assert places(found) == places(tiles)
    np.testing.assert_array_equal(found.cluster_NT, tiles.cluster_NT)
    assert found.about == {"seed": 7}
    again = tmp_path / "again.parquet"
    write_tile_list(again, found)
    assert read_tile_list(again).fingerprint == found.fingerprint


def test_the_fingerprint_is_of_places_and_weights_alone() -> None:
    same = a_list(about={}, cluster_NT=np.zeros((3, 0), dtype=np.int64))
    assert same.fingerprint == a_list().fingerprint
    for changed in (
        a_list(slide_ids=("a", "c")),
        a_list(slide_N=np.array([0, 0, 1])),
        a_list(corner_N2=np.array([[1, 4], [2, 5], [3, 7]])),
        a_list(mpp_N=np.full(3, 0.25)),
        a_list(tile_px_N=np.full(3, 256)),
        a_list(weight_N=np.array([1.0, 0.0, 2.0])),
    ):
        assert changed.fingerprint != a_list().fingerprint


def test_a_list_of_anyone_needs_places_only(tmp_path: Path) -> None:
    tiles = read_tile_list(written(tmp_path / "t.parquet", **PLAIN))
    assert places(tiles)[1] == ("a", 2, 5, 0.5, 224, 1.0)
    assert tiles.cluster_NT.shape == (3, 0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"x": None}, "has no x among slide_id, y, mpp, tile_px"),
        ({name: [] for name in PLAIN} | {"slide_id": pa.array([], pa.string())}, "lists no tile"),
        ({"y": [4, None, 6]}, "lacks values of y"),
        ({"x": [1, -2, 3]}, "needs x and y from 0; got a, x=-2, y=5, .* in row 1"),
        ({"x": [1.0, 2.5, 3.0]}, "needs whole numbers"),
        ({"x": ["left", "2", "3"]}, "needs whole numbers"),
        ({"mpp": [0.5, 0.5, float("nan")]}, "needs mpp above 0"),
        ({"tile_px": [224, 0, 224]}, "needs tile_px of at least 1"),
        ({"weight": [1.0, -1.0, 1.0]}, "needs finite weights from 0"),
        ({"weight": [0.0, 0.0, 0.0]}, "every tile the weight 0"),
    ],
)
def test_unusable_lists_are_refused(tmp_path: Path, changes, says: str) -> None:
    columns = {name: values for name, values in {**PLAIN, **changes}.items() if values is not None}
    with pytest.raises(CatalogueError, match=says):
        read_tile_list(written(tmp_path / "t.parquet", **columns))


def test_files_that_are_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match="cannot be read as a tile list"):
        read_tile_list(tmp_path / "missing.parquet")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(CatalogueError, match="cannot be read as a tile list"):
        read_tile_list(tmp_path / "torn.parquet")
    table = pa.table(PLAIN).replace_schema_metadata({"anlage": json.dumps({"format": "x/2"})})
    pq.write_table(table, tmp_path / "other.parquet")
    with pytest.raises(CatalogueError, match=r"needs format 'tile_list/1'; got 'x/2'"):
        read_tile_list(tmp_path / "other.parquet")
