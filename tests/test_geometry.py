from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anlage.geometry import Size, area_mm2, level0_px, level_px


def test_a_length_at_one_resolution_is_one_at_another() -> None:
    assert level0_px(224, mpp=0.5, slide_mpp=0.25) == 448
    assert level0_px(224, mpp=0.5, slide_mpp=0.5) == 224
    assert level0_px(10, mpp=1.0, slide_mpp=0.499) == pytest.approx(20.04008)


@pytest.mark.parametrize(("mpp", "slide_mpp"), [(0.0, 0.5), (0.5, 0.0), (-1, 1), (1, float("nan"))])
def test_a_resolution_of_nothing_is_refused(mpp: float, slide_mpp: float) -> None:
    with pytest.raises(ValueError, match=r"needs \w*mpp > 0"):
        level0_px(1, mpp=mpp, slide_mpp=slide_mpp)


@pytest.mark.parametrize(
    ("position", "downsample", "pixel"),
    [
        (0, 4.0, 0),
        (1, 4.0, 0),
        (2, 4.0, 1),
        (7, 2.0, 4),
        (-1, 2.0, 0),
        (-2, 4.0, 0),
        (-3, 4.0, -1),
        (5, 1.0, 5),
        (-5, 1.0, -5),
        (1001, 2.5, 400),
    ],
)
def test_nearest_level_pixel_halves_upwards(position: int, downsample: float, pixel: int) -> None:
    assert level_px(position, downsample=downsample) == pixel


RESOLUTION = st.floats(0.01, 1000)


@given(st.floats(0, 1e6), RESOLUTION, RESOLUTION)
def test_a_length_comes_back_from_another_resolution(
    length: float, mpp: float, slide_mpp: float
) -> None:
    there = level0_px(length, mpp=mpp, slide_mpp=slide_mpp)
    assert level0_px(there, mpp=slide_mpp, slide_mpp=mpp) == pytest.approx(length, abs=1e-9)


@given(st.integers(-(10**6), 10**6), st.floats(1, 1024))
def test_a_pixel_of_a_level_comes_back_from_its_level0_corner(
    pixel: int, downsample: float
) -> None:
    corner = round(pixel * downsample)
    assert level_px(corner, downsample=downsample) in {pixel, pixel + (corner > pixel * downsample)}
    assert (
        abs(level_px(corner, downsample=downsample) * downsample - corner) <= downsample / 2 + 1e-6
    )


def test_area() -> None:
    assert area_mm2(4_000_000, mpp=0.5) == pytest.approx(1.0)
    assert area_mm2(0, mpp=8.0) == 0


def test_size_is_width_before_height() -> None:
    assert Size(3, 2) == (3, 2)
    assert Size(3, 2).width == 3
