from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_slides import ArraySlide, pyramid, tissue_like, write_tiff

from anlage.errors import ResolutionError
from anlage.samples import slides_folder
from anlage.slides.levels import Decode, choose_level, choose_source, read_tile
from anlage.slides.reader import Level, open_slide
from reference.area_resampling import slow_area_resampling

LEVELS = (Level(4000, 3000, 1.0), Level(1000, 750, 4.0), Level(250, 187, 16.0))


@pytest.mark.parametrize(
    ("target_mpp", "level"),
    [
        (0.25, 0),
        (0.5, 0),
        (0.97, 0),
        (0.981, 1),
        (1.0, 1),
        (3.9, 1),
        (3.93, 2),
        (4.0, 2),
        (64, 2),
        (0.1, 0),
        (0.246, 0),
    ],
)
def test_the_coarsest_level_that_is_fine_enough(target_mpp: float, level: int) -> None:
    assert choose_level(LEVELS, slide_mpp=0.25, target_mpp=target_mpp) == level


@settings(max_examples=25, deadline=None)
@given(
    ratio=st.floats(1.0, 5.0),
    size_px=st.integers(1, 24),
    x=st.integers(-30, 300),
    y=st.integers(-30, 220),
)
def test_equals_the_slow_area_resampling(ratio: float, size_px: int, x: int, y: int) -> None:
    picture = tissue_like(300, 220)
    slide = ArraySlide([picture], mpp=0.25)
    tile = read_tile(slide, x, y, size_px=size_px, mpp=0.25 * ratio)
    assert tile.shape == (size_px, size_px, 3)
    assert tile.dtype == np.uint8
    n = math.ceil(size_px * ratio) + 1
    source = slide.read_region(x, y, n, n)
    # Half a unit of rounding; cv2 leaves out a pixel of which less than 1/1000 is covered.
    assert np.abs(tile - slow_area_resampling(source, ratio, size_px)).max() <= 0.6


@pytest.mark.parametrize("ratio", [1.0001, 1.001, 1.002, 1.01, 1.02])
def test_equals_the_slow_area_resampling_near_one(ratio: float) -> None:
    slide = ArraySlide([tissue_like(120, 120)], mpp=0.25)
    tile = read_tile(slide, 3, 5, size_px=60, mpp=0.25 * ratio)
    source = slide.read_region(3, 5, 62, 62)
    assert np.abs(tile - slow_area_resampling(source, ratio, 60)).max() <= 0.51


@pytest.mark.parametrize("ratio", [0.9805, 0.99, 0.9999])
def test_just_below_one_it_is_linear_interpolation(ratio: float) -> None:
    picture = tissue_like(120, 120)
    tile = read_tile(ArraySlide([picture], mpp=0.25), 0, 0, size_px=60, mpp=0.25 * ratio)
    at = np.maximum((np.arange(60) + 0.5) * ratio - 0.5, 0)
    columns = np.arange(120)
    rows = np.array([[np.interp(at, columns, picture[:, x, c]) for c in range(3)] for x in columns])
    both = [[np.interp(at, columns, rows[:, c, y]) for c in range(3)] for y in range(60)]
    # Half a unit of rounding; cv2 interpolates with whole 2048ths, twice.
    assert np.abs(tile - np.array(both).transpose(0, 2, 1)).max() <= 0.85


def test_a_level_at_the_target_is_read_as_it_is() -> None:
    levels = pyramid(640, 480)
    slide = ArraySlide(levels, mpp=0.25)
    tile = read_tile(slide, 40, 80, size_px=64, mpp=0.5)
    assert np.array_equal(tile, levels[1][40:104, 20:84])


def ramp(extent: int, step: float) -> np.ndarray:
    """Brightness that grows by ``step`` a pixel from left to right, dithered to whole numbers."""
    row = 5 + step * (np.arange(extent) + 0.5)
    dither = np.random.default_rng(0).random((extent, extent))
    return np.repeat(np.floor(row + dither)[..., None], 3, 2).astype(np.uint8)


@pytest.mark.parametrize("ratio", [1.009, 1.37, 2.0, 2.003, 2.8, 3.996, 0.985])
def test_the_physical_scale_is_exact(ratio: float) -> None:
    """On a ramp in micrometres the slope a pixel is the mpp, and pixel 0 begins at the corner."""
    slide_mpp, size_px, per_px = 0.2513, 200, 0.29
    slide = ArraySlide([ramp(840, per_px)], mpp=slide_mpp)
    mpp = slide_mpp * ratio
    tile = read_tile(slide, 17, 9, size_px=size_px, mpp=mpp)
    slope, start = np.polyfit((np.arange(size_px) + 0.5) * mpp, tile[..., 0].mean(0), 1)
    assert slope == pytest.approx(per_px / slide_mpp, rel=1e-3)
    assert start == pytest.approx(5 + per_px * 17, abs=0.2)  # cv2 rounds halves up at 2.0


@pytest.mark.parametrize("ratio", [1.3, 2.37, 3.71])
def test_grid_lines_lie_where_their_micrometres_say(ratio: float) -> None:
    slide_mpp, size_px = 0.25, 220
    picture = np.full((900, 900, 3), 255, np.uint8)
    lines_px = np.arange(20, 890, 60)
    for at in lines_px:
        picture[:, at : at + 4] = 0
    tile = read_tile(ArraySlide([picture], mpp=slide_mpp), 0, 0, size_px=size_px, mpp=0.25 * ratio)
    darkness = 255.0 - tile[0, :, 0]
    for at in lines_px:
        centre = (at + 2) / ratio  # in tile pixels, from the left edge
        near = np.arange(max(int(centre) - 4, 0), min(int(centre) + 5, size_px))
        if len(near) == 9 and centre < size_px - 5:
            found = (darkness[near] * (near + 0.5)).sum() / darkness[near].sum()
            assert found == pytest.approx(centre, abs=0.15)  # a pixel has its mass in its middle


def test_within_two_percent_a_coarser_level_is_stretched_to_the_exact_size() -> None:
    slide = ArraySlide([ramp(300, 0.5)], mpp=0.505)
    tile = read_tile(slide, 0, 0, size_px=200, mpp=0.5)
    assert tile.shape == (200, 200, 3)
    assert tile[0, -1, 0] == pytest.approx(5 + 0.5 * 199.5 * 0.5 / 0.505, abs=1)


def test_finer_than_the_slide_is_refused() -> None:
    slide = ArraySlide([tissue_like(64, 64)], mpp=0.5)
    with pytest.raises(ResolutionError, match=r"too coarse for 0\.25 .* level has 0\.5\. Ask"):
        read_tile(slide, 0, 0, size_px=8, mpp=0.25)


def test_an_unknown_resolution_is_refused_with_the_override(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "no_mpp.tiff", pyramid(200, 150, n_levels=1), mpp=None)
    with open_slide(path) as slide, pytest.raises(ResolutionError, match="`mpp` column"):
        read_tile(slide, 0, 0, size_px=8, mpp=0.5)


@pytest.mark.parametrize(("size_px", "mpp"), [(0, 0.5), (8, 0.0), (8, -1.0), (8, float("nan"))])
def test_an_impossible_tile_is_refused(size_px: int, mpp: float) -> None:
    slide = ArraySlide([tissue_like(64, 64)], mpp=0.5)
    with pytest.raises(ValueError, match="read_tile needs size_px >= 1 and mpp > 0"):
        read_tile(slide, 0, 0, size_px=size_px, mpp=mpp)


def test_beyond_the_right_and_bottom_edge_it_is_white() -> None:
    slide = ArraySlide([np.zeros((100, 100, 3), np.uint8)], mpp=0.5)
    tile = read_tile(slide, 50, 60, size_px=40, mpp=1.0)
    assert (tile[:20, :25] == 0).all()
    assert (tile[20:] == 255).all()
    assert (tile[:, 25:] == 255).all()
    outside = read_tile(slide, 1000, -1000, size_px=16, mpp=1.3)
    assert (outside == 255).all()


def test_corners_are_level_0_pixels_whatever_the_level() -> None:
    levels = pyramid(640, 480)
    slide = ArraySlide(levels, mpp=0.25)
    fine = slide.read_region(160, 120, 256, 256).astype(float)
    coarse = read_tile(slide, 160, 120, size_px=64, mpp=1.0)
    assert np.abs(coarse - fine.reshape(64, 4, 64, 4, 3).mean((1, 3))).max() <= 1.5


JPEG = {"compression": "jpeg", "photometric": "ycbcr", "subsampling": (2, 2)}


@pytest.fixture(scope="module")
def one_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JPEG slide at 0.25 mpp without lower levels, in tiles of 240 px."""
    smooth = cv2.GaussianBlur(tissue_like(1500, 1100), (0, 0), 1.5)
    path = tmp_path_factory.mktemp("levels") / "one_level.tiff"
    return write_tiff(path, [smooth], mpp=0.25, **{**JPEG, "tile": (240, 240)})


@pytest.mark.parametrize(
    ("mpp", "decode", "reduce", "ratio"),
    [
        (0.25, "scaled", 1, 1.0),
        (0.4899, "scaled", 1, 1.9596),
        (0.4902, "scaled", 2, 0.9804),
        (0.5, "scaled", 2, 1.0),
        (0.7, "scaled", 2, 1.4),
        (1.0, "scaled", 4, 1.0),
        (2.0, "scaled", 8, 1.0),
        (9.0, "scaled", 8, 4.5),
        (0.5, "full", 1, 2.0),
        (9.0, "full", 1, 36.0),
    ],
)
def test_the_largest_reduction_that_is_fine_enough(
    one_level: Path, mpp: float, decode: Decode, reduce: int, ratio: float
) -> None:
    with open_slide(one_level) as slide:
        source = choose_source(slide, size_px=64, mpp=mpp, decode=decode)
    assert (source.level, source.reduce) == (0, reduce)
    assert source.ratio == pytest.approx(ratio, rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    mpp=st.floats(0.5, 4.0),
    size_px=st.integers(8, 40),
    x=st.integers(0, 700),
    y=st.integers(0, 450),
)
def test_a_scaled_tile_shows_what_the_full_one_shows(
    one_level: Path, mpp: float, size_px: int, x: int, y: int
) -> None:
    with open_slide(one_level) as slide:
        step = choose_source(slide, size_px=size_px, mpp=mpp, decode="scaled").reduce
        x, y = x // step * step, y // step * step  # where both begin at the same pixel
        scaled = read_tile(slide, x, y, size_px=size_px, mpp=mpp)
        full = read_tile(slide, x, y, size_px=size_px, mpp=mpp, decode="full")
    assert np.abs(scaled.astype(int) - full).mean() < 2
    assert abs(scaled.mean() - full.mean()) < 0.7


@pytest.mark.parametrize("mpp", [0.5, 0.7, 1.0, 1.3, 2.0])
def test_scaled_and_full_begin_within_half_a_pixel_of_the_corner(
    tmp_path: Path, mpp: float
) -> None:
    """The centre of a bright square on black, in micrometres from the corner that was asked for."""
    picture = np.full((1440, 1440, 3), (0, 128, 128), np.uint8)  # written as YCbCr
    picture[400:480, 320:448, 0] = 255  # centre at 384, 440
    path = write_tiff(tmp_path / "square.tiff", [picture], mpp=0.25, **{**JPEG, "tile": (240, 240)})
    with open_slide(path) as slide:
        for corner, decode in product((280, 281, 283, 285), ("scaled", "full")):
            tile = read_tile(slide, corner, corner, size_px=120, mpp=mpp, decode=decode)
            brightness = tile[..., 1].astype(float)
            step = (
                1
                if decode == "full"
                else choose_source(slide, size_px=120, mpp=mpp, decode="scaled").reduce
            )
            for axis, centre in ((0, 384), (1, 440)):
                profile = brightness.sum(axis=axis)
                found_um = (profile * (np.arange(120) + 0.5)).sum() / profile.sum() * mpp
                # Rounding of the corner to a pixel of the reduced level, and nothing else.
                begins = math.floor(corner / step + 0.5) * step
                assert found_um == pytest.approx((centre - begins) * 0.25, abs=0.03)
                assert abs(begins - corner) * 0.25 <= mpp / 2 + 1e-9


def test_readers_without_a_scaled_decoder_decode_in_full() -> None:
    slide = ArraySlide([tissue_like(300, 220)], mpp=0.25)
    for mpp in (0.5, 0.9):
        scaled = read_tile(slide, 3, 5, size_px=40, mpp=mpp)
        assert np.array_equal(scaled, read_tile(slide, 3, 5, size_px=40, mpp=mpp, decode="full"))


@pytest.mark.parametrize(
    ("factor", "limit"),
    # Decision 0011: a whole factor is the same mean; between two, averaging twice blurs.
    [(2.0, 0.5), (4.0, 0.5), (8.0, 0.5), (2.004, 7), (3.0, 4)],
)
def test_how_far_the_scaled_decoder_is_from_the_full_one(factor: float, limit: float) -> None:
    with open_slide(slides_folder() / "CMU-1-Small-Region.svs") as slide:
        corners = [(x, y) for x in (240, 960, 1440) for y in (480, 1200, 1920)]
        tiles = {
            decode: [
                read_tile(slide, x, y, size_px=96, mpp=slide.mpp * factor, decode=decode)
                for x, y in corners
            ]
            for decode in get_args(Decode)
        }
    differences = np.array(tiles["scaled"]).astype(int) - np.array(tiles["full"])
    assert np.abs(differences).mean() < limit
    assert abs(differences.mean()) < 0.2
    if factor in {2.0, 4.0, 8.0}:
        for scaled, full in zip(tiles["scaled"], tiles["full"], strict=True):
            pair = [np.asarray(tile[..., 1], np.float64) for tile in (scaled, full)]
            shift, _ = cv2.phaseCorrelate(*pair)
            assert np.abs(shift).max() < 0.1  # pixels of the tile
