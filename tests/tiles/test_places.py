from __future__ import annotations

from fractions import Fraction
from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anlage.tiles.places import find_places
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
