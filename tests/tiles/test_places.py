from __future__ import annotations

from fractions import Fraction
from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from anlage.tiles.places import CornerRange, Places, find_places
from reference.tile_tissue import tissue_of_tile


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    per_mask_px=st.sampled_from([Fraction(1), Fraction(4), Fraction(16, 5), Fraction(37, 10)]),
    edge=st.sampled_from([Fraction(8), Fraction(97, 10), Fraction(25, 2)]),
    width=st.integers(1, 60),
    height=st.integers(1, 60),
    percent=st.sampled_from([0, 30, 50, 80, 100]),
)
def test_every_reachable_corner_lies_inside_and_holds_enough_tissue(
    seed: int, per_mask_px: Fraction, edge: Fraction, width: int, height: int, percent: int
) -> None:
    generator = np.random.default_rng(seed)
    shape = (ceil(height / per_mask_px), ceil(width / per_mask_px))
    mask = np.repeat(generator.random((shape[0], 1)) < 0.9, shape[1], 1) & (
        generator.random(shape) < 0.9
    )
    places = find_places(
        mask,
        slide_size=(width, height),
        per_mask_px=float(per_mask_px),
        edge=float(edge),
        min_tissue=percent / 100,
    )
    if width < edge or height < edge or (mask.mean() == 0 and percent):
        assert places.n_places == 0
    for numbers in generator.random((30, 3)) if places.n_places else ():
        x, y = places.corner(*numbers)
        assert x >= 0
        assert y >= 0
        assert x + edge <= width
        assert y + edge <= height
        tissue = tissue_of_tile(mask, x, y, edge=edge, per_mask_px=per_mask_px)
        assert tissue >= Fraction(percent, 100)


def test_places_are_drawn_evenly_and_reach_all_of_the_tissue() -> None:
    mask = np.zeros((10, 12), bool)
    mask[2:8, 1:5] = mask[4:6, 6:11] = True
    places = find_places(mask, slide_size=(24, 20), per_mask_px=2.0, edge=4.0, min_tissue=1.0)
    allowed = {
        (x, y)
        for x in range(21)
        for y in range(17)
        if x % 2 == y % 2 == 0 and mask[y // 2 : y // 2 + 2, x // 2 : x // 2 + 2].all()
    }
    assert places.n_places == len(allowed)
    generator = np.random.default_rng(0)
    drawn = [places.corner(*generator.random(3)) for _ in range(4000)]
    corners, counts = np.unique(drawn, axis=0, return_counts=True)
    assert {tuple(c) for c in corners.tolist()} == allowed
    expected = 4000 / len(allowed)
    assert ((counts - expected) ** 2 / expected).sum() < 45  # chi-square, 18 degrees, p < 0.001


def test_corners_fall_between_mask_pixels_too() -> None:
    places = find_places(
        np.ones((6, 6), bool), slide_size=(192, 192), per_mask_px=32.0, edge=64.0, min_tissue=0.5
    )
    generator = np.random.default_rng(0)
    x = np.array([places.corner(*generator.random(3))[0] for _ in range(5000)])
    assert x.min() <= 2
    assert x.max() >= 126
    assert len(np.unique(x % 32)) == 31  # all but the one halfway between two mask pixels


def test_a_tile_as_large_as_the_slide_has_one_place() -> None:
    places = find_places(
        np.ones((3, 3), bool), slide_size=(20, 20), per_mask_px=8.0, edge=20.0, min_tissue=0.5
    )
    assert places.n_places == 1
    assert places.corner(0.99, 0.99, 0.99) == (0, 0)


@pytest.mark.parametrize(
    ("per_mask_px", "edge", "shape", "complaint"),
    [
        (0.5, 8.0, (99, 99), "no finer than the slide"),
        (16.0, 8.0, (9, 9), "resolves a tile"),
        (4.0, 8.0, (2, 9), "covers the slide; got 36 x 8 of 40 x 40"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(
    per_mask_px: float, edge: float, shape: tuple[int, int], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        find_places(
            np.ones(shape, bool),
            slide_size=(40, 40),
            per_mask_px=per_mask_px,
            edge=edge,
            min_tissue=0.5,
        )


MASKS = st.tuples(st.integers(0, 10**6), st.integers(20, 60), st.integers(20, 60))


def places_of(
    seed: int, width: int, height: int, **changed: float
) -> tuple[Places, NDArray[np.bool_]]:
    generator = np.random.default_rng(seed)
    shape = (ceil(height / 3.2), ceil(width / 3.2))
    mask = (generator.random((shape[0], 1)) < 0.8) & (generator.random(shape) < 0.9)
    settings = {"per_mask_px": 3.2, "edge": 9.7, "min_tissue": 0.6} | changed
    return find_places(mask, slide_size=(width, height), **settings), mask


def corner_ranges(places: Places, within: CornerRange) -> set[tuple[int, int, int, int]]:
    """Corners that each place within a rectangle allows, by looking at every place."""
    ranges = set()
    for start, length in zip(places.run_starts, np.diff(places.n_before), strict=True):
        for place in range(start, start + length):
            row, column = divmod(place, len(places.x_low))
            x = max(places.x_low[column], within.x_first), min(places.x_high[column], within.x_last)
            y = max(places.y_low[row], within.y_first), min(places.y_high[row], within.y_last)
            if x[0] <= x[1] and y[0] <= y[1]:
                ranges.add((*map(int, x), *map(int, y)))
    return ranges


@settings(max_examples=60, deadline=None)
@given(mask=MASKS, box=st.tuples(*[st.integers(-5, 60)] * 4))
def test_places_within_a_rectangle_are_those_one_finds_by_looking(
    mask: tuple[int, int, int], box: tuple[int, int, int, int]
) -> None:
    places, _ = places_of(*mask)
    within = CornerRange(min(box[:2]), max(box[:2]), min(box[2:]), max(box[2:]))
    expected = corner_ranges(places, within)
    if not expected:
        with pytest.raises(IndexError):
            places.corners_within(within, np.zeros((1, 3)))
        return
    n = len(expected)
    u_place = (np.arange(n) + 0.5) / n  # each place once
    low = places.corners_within(within, np.stack((u_place, 0 * u_place, 0 * u_place), 1))
    high = places.corners_within(within, np.stack((u_place, 0 * u_place + 0.9999, u_place), 1))
    assert {(x, y) for x, y in low.tolist()} == {(r[0], r[2]) for r in expected}
    assert set(high[:, 0].tolist()) == {r[1] for r in expected}
    assert all((r[2] <= high[:, 1]).any() for r in expected)


@settings(max_examples=60, deadline=None)
@given(mask=MASKS, margin=st.sampled_from([0.0, 1.0, 4.85, 13.3]), seed=st.integers(0, 99))
def test_tiles_keep_their_margin(mask: tuple[int, int, int], margin: float, seed: int) -> None:
    places, tissue_mask = places_of(*mask, margin=margin)
    whole, _ = places_of(*mask)
    assert places.n_places <= whole.n_places
    for numbers in np.random.default_rng(seed).random((20, 3)) if places.n_places else ():
        x, y = places.corner(*numbers)
        assert min(x, y) >= margin
        assert x + 9.7 + margin <= mask[1] + 1e-6
        assert y + 9.7 + margin <= mask[2] + 1e-6
        edge, per_mask_px = Fraction("9.7"), Fraction("3.2")
        tissue = tissue_of_tile(tissue_mask, x, y, edge=edge, per_mask_px=per_mask_px)
        assert tissue >= Fraction("0.6")


def test_places_take_the_memory_they_say() -> None:
    places, _ = places_of(0, 60, 60)
    n_runs, (n_rows, n_columns) = len(places.run_starts), (len(places.y_low), len(places.x_low))
    assert places.n_bytes == 8 * (2 * n_runs + 1 + 2 * n_rows + 2 * n_columns) > 0


def test_tiles_of_very_many_mask_pixels_are_counted() -> None:
    mask = np.random.default_rng(0).random((320, 330)) < 0.5
    counts = [mask[y : y + 300, x : x + 300].sum() for y in range(21) for x in range(31)]
    enough = int(np.median(counts))
    places = find_places(
        mask, slide_size=(330, 320), per_mask_px=1.0, edge=300.0, min_tissue=enough / 90_000
    )
    assert 0 < places.n_places == sum(count >= enough for count in counts) < len(counts)


@settings(max_examples=30, deadline=None)
@given(mask=MASKS, edge=st.sampled_from([Fraction(8), Fraction("9.7"), Fraction("12.5")]))
def test_no_place_is_missed(mask: tuple[int, int, int], edge: Fraction) -> None:
    """A mask pixel is a place if the tiles at all its corners hold enough tissue."""
    places, tissue_mask = places_of(*mask, edge=float(edge))
    expected = set()
    for row, y_ends in enumerate(zip(places.y_low, places.y_high, strict=True)):
        for column, x_ends in enumerate(zip(places.x_low, places.x_high, strict=True)):
            least = min(
                tissue_of_tile(tissue_mask, int(x), int(y), edge=edge, per_mask_px=Fraction("3.2"))
                for x in x_ends
                for y in y_ends
            )
            if least >= Fraction("0.6"):
                expected.add(row * len(places.x_low) + column)
    runs = zip(places.run_starts.tolist(), np.diff(places.n_before).tolist(), strict=True)
    found = {place for start, length in runs for place in range(start, start + length)}
    assert found == expected
