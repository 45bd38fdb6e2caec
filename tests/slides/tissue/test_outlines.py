from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from anlage.slides.tissue import outlines as outlines_module
from anlage.slides.tissue.outlines import fill_outlines, outlines_of
from reference.even_odd import slow_fill

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=9))


def drawn(*rows: str) -> np.ndarray:
    return np.array([[cell == "#" for cell in row] for row in rows])


def doubled_area(ring: np.ndarray) -> float:
    following = np.roll(ring, -1, axis=0)
    return float((ring[:, 0] * following[:, 1] - following[:, 0] * ring[:, 1]).sum())


@given(masks)
@settings(deadline=None)
def test_a_mask_comes_back_from_its_outlines(mask: np.ndarray) -> None:
    assert np.array_equal(fill_outlines(outlines_of(mask), mask.shape), mask)


@given(masks)
@settings(deadline=None)
def test_every_outline_is_a_valid_polygon_of_one_part(mask: np.ndarray) -> None:
    found = outlines_of(mask)
    parts, n_parts = ndimage.label(mask)
    assert len(found) == n_parts
    for rings in found:
        for i, ring in enumerate(rings):
            assert len(np.unique(ring, axis=0)) == len(ring)  # it never comes through a point twice
            steps = np.roll(ring, -1, axis=0) - ring
            assert ((steps != 0).sum(axis=1) == 1).all()  # along pixel edges
            turns = np.roll(steps, -1, axis=0) != 0
            assert (turns != (steps != 0)).all()  # every corner is one
            assert (doubled_area(ring) > 0) == (i == 0)
        alone = slow_fill([rings], mask.shape)
        assert len(np.unique(parts[alone])) == 1
        assert sum(map(doubled_area, rings)) == 2 * alone.sum()


def test_parts_that_touch_by_a_corner_are_two() -> None:
    assert len(outlines_of(drawn("#.", ".#"))) == 2


def test_a_pocket_that_closes_by_a_corner_is_a_hole() -> None:
    (rings,) = outlines_of(drawn("###", "#.#", "##."))
    assert len(rings) == 2
    assert {tuple(corner) for corner in rings[1]} == {(1, 1), (2, 1), (2, 2), (1, 2)}


def test_an_island_in_a_hole_is_a_part_of_its_own() -> None:
    ring_and_island = drawn("#####", "#...#", "#.#.#", "#...#", "#####")
    assert [len(rings) for rings in outlines_of(ring_and_island)] == [2, 1]


def test_outlines_of_nothing_are_none() -> None:
    assert outlines_of(np.zeros((3, 4), bool)) == []
    assert not fill_outlines([], (3, 4)).any()


coordinate = st.floats(-3, 12, allow_nan=False).map(lambda v: round(v, 3) + 0.0003)
rings_strategy = st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=7).map(np.array)


@given(st.lists(st.lists(rings_strategy, min_size=1, max_size=3), max_size=4))
@settings(deadline=None)
def test_any_polygons_are_filled_as_the_slow_rule_says(
    polygons: list[list[np.ndarray]],
) -> None:
    shape = (8, 10)
    assert np.array_equal(fill_outlines(polygons, shape), slow_fill(polygons, shape))


def test_many_crossings_are_filled_in_bands(
    generator: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    polygons = [[generator.uniform(-5, 45, (6, 2))] for _ in range(5)]
    whole = fill_outlines(polygons, (40, 40))
    monkeypatch.setattr(outlines_module, "CROSSINGS_AT_ONCE", 30)
    assert np.array_equal(fill_outlines(polygons, (40, 40)), whole)


def test_a_large_mask_comes_back(generator: np.random.Generator) -> None:
    coarse = generator.random((60, 70)) < 0.4
    mask = ndimage.zoom(coarse.astype(float), 10, order=1) > 0.45
    assert np.array_equal(fill_outlines(outlines_of(mask), mask.shape), mask)
