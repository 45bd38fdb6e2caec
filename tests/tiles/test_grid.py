from __future__ import annotations

from fractions import Fraction
from math import ceil

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from anlage.tiles.grid import tile_grid
from anlage.tiles.spec import TileSpec
from reference.tile_tissue import slow_tile_grid


def grid(mask: np.ndarray, *, size: tuple[int, int] | None = None, **spec: float) -> list:
    settings = {"size_px": 4, "mpp": 1.0, "stride_px": 4, "min_tissue": 0.5, **spec}
    corners = tile_grid(
        mask, mask_mpp=2.0, slide_mpp=0.5, spec=TileSpec(**settings), slide_size=size
    )
    assert corners.dtype == np.int64
    assert corners.shape[1:] == (2,)
    return [tuple(c) for c in corners.tolist()]


def test_known_corners_in_row_major_order() -> None:
    mask = np.zeros((4, 6), bool)
    mask[:2, 2:6] = True
    mask[3, 0] = True
    assert grid(mask) == [(8, 0), (16, 0)]
    assert grid(mask, min_tissue=0.25) == [(8, 0), (16, 0), (0, 8)]


@example(  # an edge on 7.5 mask pixels, which floats put a hair below
    seed=0,
    slide_mpp=Fraction(1, 4),
    mpp=Fraction(3, 10),
    size_px=20,
    stride_px=3,
    mask_mpp=Fraction(7, 3),
    width=71,
    height=50,
    percent=1,
)
@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    slide_mpp=st.sampled_from([Fraction(1, 4), Fraction(1, 2), Fraction(2521, 10000)]),
    mpp=st.sampled_from([Fraction(1, 2), Fraction(1), Fraction(3, 10)]),
    size_px=st.integers(8, 30),
    stride_px=st.integers(3, 40),
    mask_mpp=st.sampled_from([Fraction(2), Fraction(7, 3)]),
    width=st.integers(1, 120),
    height=st.integers(1, 120),
    percent=st.integers(0, 100),
)
def test_equals_a_double_loop_in_exact_fractions(
    seed: int,
    slide_mpp: Fraction,
    mpp: Fraction,
    size_px: int,
    stride_px: int,
    mask_mpp: Fraction,
    width: int,
    height: int,
    percent: int,
) -> None:
    shape = (ceil(height * slide_mpp / mask_mpp), ceil(width * slide_mpp / mask_mpp))
    mask = np.random.default_rng(seed).random(shape) < 0.6
    made = tile_grid(
        mask,
        mask_mpp=float(mask_mpp),
        slide_mpp=float(slide_mpp),
        spec=TileSpec(
            size_px=size_px, mpp=float(mpp), stride_px=stride_px, min_tissue=percent / 100
        ),
        slide_size=(width, height),
    )
    expected = slow_tile_grid(
        mask,
        mask_mpp=mask_mpp,
        slide_mpp=slide_mpp,
        tile=(size_px, stride_px, mpp),
        min_tissue=Fraction(percent, 100),
        slide_size=(width, height),
    )
    assert [tuple(c) for c in made.tolist()] == expected


@pytest.mark.parametrize("slide_mpp", [0.2521, 0.25, 0.5031])
def test_no_tile_crosses_the_slide(slide_mpp: float) -> None:
    width, height = 1237, 911
    shape = (ceil(height * slide_mpp / 8), ceil(width * slide_mpp / 8))
    spec = TileSpec(size_px=32, mpp=0.5, stride_px=7, min_tissue=0)
    corners = tile_grid(
        *(np.ones(shape, bool),),
        mask_mpp=8.0,
        slide_mpp=slide_mpp,
        spec=spec,
        slide_size=(width, height),
    )
    edge = 32 * 0.5 / slide_mpp
    assert (corners >= 0).all()
    assert (corners + edge <= [width, height]).all()
    assert (corners.max(0) + edge + 7 * 0.5 / slide_mpp > np.array([width, height]) - 1).all()


def test_without_a_size_the_mask_is_the_slide() -> None:
    assert len(grid(np.ones((4, 6), bool))) == 6
    assert len(grid(np.ones((4, 6), bool), size=(23, 16))) == 4


@pytest.mark.parametrize(
    ("mask", "size"),
    [(np.zeros((4, 6), bool), (24, 16)), (np.ones((4, 6), bool), (24, 7))],
)
def test_no_tile_is_an_empty_table(mask: np.ndarray, size: tuple[int, int]) -> None:
    assert grid(mask, size=size) == []


def test_a_full_threshold_takes_full_tiles() -> None:
    assert len(grid(np.ones((4, 6), bool), min_tissue=1.0)) == 6


def test_a_mask_that_cannot_resolve_a_tile_is_refused() -> None:
    spec = TileSpec(size_px=224, mpp=0.5, stride_px=224)
    with pytest.raises(ValueError, match=r"tile of 112 µm, which spans 0.22 .* at 112 mpp or fin"):
        tile_grid(np.ones((4, 4), bool), mask_mpp=500, slide_mpp=0.5, spec=spec)


@pytest.mark.parametrize(
    "wrong", [{"size_px": 0}, {"mpp": 0.0}, {"stride_px": 0}, {"min_tissue": 1.1}]
)
def test_a_spec_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"TileSpec: needs .*; got .*\. Correct"):
        TileSpec(**wrong)
