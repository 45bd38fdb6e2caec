from __future__ import annotations

import json
from math import floor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from anlage.errors import TissueError
from anlage.geometry import Size
from anlage.slides.masks import TissueMask
from anlage.slides.tissue import drawn_polygons
from anlage.slides.tissue.geojson import read_geojson, write_geojson

SIZE = Size(160, 120)  # level-0 pixels, 0.5 mpp; 20 x 15 mask pixels of 4 mpp
SQUARE = [[16, 16], [80, 16], [80, 64], [16, 64], [16, 16]]
HOLE = [[32, 32], [32, 48], [48, 48], [48, 32], [32, 32]]


def feature(rings: Any, *, name: str | None = "Tumor", **properties: Any) -> dict[str, Any]:
    """As QuPath 0.5 exports an annotation."""
    classification = {} if name is None else {"classification": {"name": name, "color": [1, 2, 3]}}
    return {
        "type": "Feature",
        "id": "7a1d9b0e-5d5c-4c0c-8c5c-0c7d1a2b3c4d",
        "geometry": {"type": "Polygon", "coordinates": rings},
        "properties": {"objectType": "annotation", **classification, **properties},
    }


def collection(*features: Any) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": list(features)}


def read(path: Path, tree: Any, **settings: Any) -> np.ndarray:
    path.write_text(tree if isinstance(tree, str) else json.dumps(tree), encoding="utf-8")
    found = read_geojson(path, slide_size=SIZE, slide_mpp=0.5, mask_mpp=4.0, **settings)
    assert found.mpp == 4.0
    return found.mask


def square() -> np.ndarray:
    mask = np.zeros((15, 20), dtype=bool)
    mask[2:8, 2:10] = True
    return mask


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "slide.geojson"


@given(
    mask=arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12)).filter(np.any),
    slide_mpp=st.floats(0.1, 4.0),
    per_mask_px=st.floats(1.0, 60.0),
    within=st.floats(0, 1),
)
@settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_written_mask_is_read_back_the_same(
    path: Path, mask: np.ndarray, slide_mpp: float, per_mask_px: float, within: float
) -> None:
    tissue = TissueMask(mask, slide_mpp * per_mask_px)
    height, width = (slide_px(n, per_mask_px, within) for n in mask.shape)
    write_geojson(path, tissue, slide_mpp=slide_mpp)
    back = read_geojson(
        path, slide_size=Size(width, height), slide_mpp=slide_mpp, mask_mpp=tissue.mpp
    )
    assert back.mpp == tissue.mpp
    assert np.array_equal(back.mask, mask)


def slide_px(n_mask_px: int, per_mask_px: float, within: float) -> int:
    """A slide's extent that needs just that many mask pixels."""
    shortest = floor((n_mask_px - 1) * per_mask_px + 1e-3) + 1
    return shortest + round(within * (floor(n_mask_px * per_mask_px) - shortest))


def test_what_is_written_is_what_qupath_exports(path: Path) -> None:
    mask = square()
    mask[4:6, 4:6] = False
    write_geojson(path, TissueMask(mask, 4.0), slide_mpp=0.5)
    tree = json.loads(path.read_text())
    assert tree["type"] == "FeatureCollection"
    (only,) = tree["features"]
    assert only["type"] == "Feature"
    assert only["properties"] == {
        "objectType": "annotation",
        "name": "Tissue 1",
        "classification": {"name": "Tissue", "color": [0, 150, 90]},
    }
    outer, hole = only["geometry"]["coordinates"]
    assert outer == SQUARE
    assert sorted(map(tuple, hole[:-1])) == sorted(map(tuple, HOLE[:-1]))
    assert hole[0] == hole[-1]


def test_a_part_is_a_feature(path: Path) -> None:
    mask = square()
    mask[12:, 15:] = True
    write_geojson(path, TissueMask(mask, 4.0), slide_mpp=0.5)
    assert [f["properties"]["name"] for f in json.loads(path.read_text())["features"]] == [
        "Tissue 1",
        "Tissue 2",
    ]


@pytest.mark.parametrize(
    "tree",
    [
        collection(feature([SQUARE])),
        [feature([SQUARE])],
        feature([SQUARE]),
        {"type": "Polygon", "coordinates": [SQUARE]},
        {"type": "MultiPolygon", "coordinates": [[SQUARE]]},
        feature([[[x, y, 0] for x, y in SQUARE]]),
        feature([SQUARE], name=None),
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [SQUARE]}},
    ],
    ids=["collection", "list", "feature", "polygon", "multi", "3D", "unclassified", "bare"],
)
def test_every_way_to_write_a_polygon_is_read(path: Path, tree: Any) -> None:
    assert np.array_equal(read(path, tree), square())


def test_a_file_with_a_byte_order_mark_is_read(path: Path) -> None:
    assert np.array_equal(read(path, "\ufeff" + json.dumps(feature([SQUARE]))), square())


def test_holes_stay_open_and_overlapping_polygons_join(path: Path) -> None:
    holed = square()
    holed[4:6, 4:6] = False
    assert np.array_equal(read(path, feature([SQUARE, HOLE])), holed)
    assert np.array_equal(read(path, feature([SQUARE, HOLE[::-1]])), holed)
    assert np.array_equal(
        read(path, collection(feature([SQUARE, HOLE]), feature([HOLE]))), square()
    )


def test_a_pixel_counts_by_its_centre(path: Path) -> None:
    shifted = [[x + 3.9, y - 3.9] for x, y in SQUARE]
    assert np.array_equal(read(path, feature([shifted])), square())
    shifted = [[x + 4.1, y] for x, y in SQUARE]
    assert np.array_equal(read(path, feature([shifted])), np.roll(square(), 1, axis=1))


def test_what_reaches_over_the_edge_is_cut_off(path: Path) -> None:
    over = [[-10, -10], [170, -10], [170, 40], [-10, 40], [-10, -10]]
    found = read(path, feature([over]))
    assert found[:5].all()
    assert not found[5:].any()


def test_ignored_classes_and_other_objects_do_not_count(path: Path) -> None:
    others = [
        feature([HOLE], name="Ignore*"),
        feature([HOLE], name="Region*"),
        feature([HOLE], name="ignored by me"),
        feature([HOLE], objectType="detection"),
    ]
    elsewhere = [[[x + 80, y] for x, y in SQUARE[:4]] + [[96, 16]]]
    assert np.array_equal(read(path, collection(feature([SQUARE]), *others)), square())
    with pytest.raises(TissueError, match=r"got 1 of class 'Ignore\*', 1 of class 'Region\*'"):
        read(path, collection(*others))
    derived = {"classification": {"names": ["Tumor", "Ignore*"]}}
    with pytest.raises(TissueError, match=r"class 'Tumor: Ignore\*'"):
        read(path, feature([SQUARE], name=None, **derived))
    odd = feature([SQUARE], name=None, classification={"names": 7})
    assert np.array_equal(read(path, odd), square())
    two = collection(feature([SQUARE], name="Tumor"), feature(elsewhere, name="Stroma"))
    assert np.array_equal(read(path, two, classes=["Tumor"]), square())
    assert np.array_equal(read(path, two, classes=["Stroma"]), np.roll(square(), 10, axis=1))
    region = feature([SQUARE], name="Region*")
    assert np.array_equal(read(path, region, classes=["Region*"]), square())


def test_a_file_full_of_other_things_is_named_in_one_line(path: Path) -> None:
    others = [feature([HOLE], name=f"{i} {'class' * 30}*") for i in range(50)]
    with pytest.raises(TissueError, match="and 45 more") as caught:
        read(path, collection(*others))
    assert len(caught.value.message) < 1000


def test_points_and_lines_are_passed_over(path: Path) -> None:
    line = feature([]) | {"geometry": {"type": "LineString", "coordinates": [[0, 0], [9, 9]]}}
    assert np.array_equal(read(path, collection(line, feature([SQUARE]))), square())
    with pytest.raises(TissueError, match="got 1 of LineString"):
        read(path, line)


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ("", "is no GeoJSON: Expecting value"),
        ("[" * 100_000, "is no GeoJSON"),
        ('"text"', 'the file needs to be a FeatureCollection, Feature or list; got "text"'),
        ({"type": "Topology"}, 'got {"type": "Topology"}'),
        (collection(), "needs a polygon of tissue; got no feature"),
        ([7], "feature 1 needs to be an object; got 7"),
        (feature([SQUARE]) | {"geometry": None}, "needs to be a Polygon or MultiPolygon; got null"),
        (feature([]), r"feature 1 \(Tumor\) needs to be a list of rings; got \[\]"),
        (feature([SQUARE[:-1]]), "ring 1 needs to end where it begins; it runs from"),
        (feature([SQUARE, HOLE[:3]]), "ring 2 needs to be a list of at least four positions"),
        (feature([[["a", "b"]] * 5]), "ring 1 needs to be a list of at least four positions"),
        (feature([[[1, 2], [3]] * 3]), "ring 1 needs to be a list of at least four positions"),
        (feature([[*SQUARE[:2], [float("nan"), 1], *SQUARE[3:]]]), "position 3 needs to be finite"),
        (
            feature([[[x + 200, y] for x, y in SQUARE]]),
            "lie on the slide .160 x 120 px.; got x 216",
        ),
        (feature([[[x * 4, y * 4] for x, y in SQUARE]]), "Give coordinates in level-0 pixels"),
        (feature([[[17, 17], [18, 17], [18, 18], [17, 17]]]), "none over the centre of a 4 µm"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(path: Path, tree: Any, said: str) -> None:
    with pytest.raises(TissueError, match=said) as caught:
        read(path, tree)
    assert caught.value.path == str(path)


def test_missing_binary_and_huge_files_are_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TissueError, match="cannot be read: No such file"):
        read_geojson(path, slide_size=SIZE, slide_mpp=0.5, mask_mpp=4.0)
    path.write_bytes(b"\x1f\x8b\xff\x00")
    with pytest.raises(TissueError, match="is no GeoJSON"):
        read_geojson(path, slide_size=SIZE, slide_mpp=0.5, mask_mpp=4.0)
    monkeypatch.setattr(drawn_polygons, "MAX_BYTES", 100)
    with pytest.raises(TissueError, match="at most 0 are read. In QuPath, select"):
        read(path, feature([SQUARE]))


numbers = st.integers() | st.floats() | st.sampled_from([1e308, -1e308, 10**400, 0, 16, 80])
positions = st.lists(st.lists(numbers, max_size=3), max_size=6).map(
    lambda ring: [*ring, ring[0]] if ring else ring
)
anything = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
geometries = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["Polygon", "MultiPolygon", "Point", "Circle"]),
        "coordinates": st.lists(positions | st.lists(positions, max_size=2) | anything, max_size=3),
    }
)
features = st.fixed_dictionaries(
    {
        "geometry": geometries | anything,
        "properties": st.fixed_dictionaries({"classification": anything, "objectType": anything})
        | st.fixed_dictionaries({"classification": anything})
        | anything,
    }
)


@given(anything | geometries | st.lists(features | anything, min_size=1, max_size=3))
@settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_a_file_holds_is_read_or_refused_by_name(path: Path, tree: Any) -> None:
    refused = None
    try:
        assert read(path, tree).any()
    except TissueError as error:
        refused = error
    assert refused is None or (refused.path == str(path) and len(refused.message) < 1000)


def test_a_hole_far_off_the_slide_is_refused(path: Path) -> None:
    far = [[1e308, 0], [-1e308, 9], [1e308, 99], [1e308, 0]]
    with pytest.raises(TissueError, match="needs to lie on the slide"):
        read(path, feature([SQUARE, far]))
