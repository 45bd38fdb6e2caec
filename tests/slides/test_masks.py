from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anlage.geometry import Size
from anlage.slides.masks import (
    MAX_MASK_PX,
    SummedArea,
    TissueMask,
    bounded_mask_mpp,
    decode_mask,
    encode_mask,
    mask_shape,
    tissue_area_mm2,
)


def slow_fraction(mask: np.ndarray, left: float, top: float, right: float, bottom: float) -> float:
    """Count pixel by pixel; what is outside the mask is no tissue."""
    x0, y0, x1, y1 = (round(edge) for edge in (left, top, right, bottom))
    tissue = pixels = 0
    for y in range(y0, y1):
        for x in range(x0, x1):
            pixels += 1
            if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1]:
                tissue += int(mask[y, x])
    return tissue / pixels


def test_fractions_equal_counting_on_random_rectangles(generator: np.random.Generator) -> None:
    mask = generator.random((23, 31)) < 0.4
    left, top = generator.uniform(-6, 30, (2, 300))
    right, bottom = left + generator.uniform(1.5, 15, 300), top + generator.uniform(1.5, 15, 300)
    found = SummedArea(mask).fraction(left, top, right, bottom)
    slow = [slow_fraction(mask, *edges) for edges in zip(left, top, right, bottom, strict=True)]
    np.testing.assert_array_equal(found, slow)
    assert 0 < found.mean() < 0.5


def test_edges_broadcast_into_a_grid() -> None:
    mask = np.zeros((4, 6), dtype=bool)
    mask[:2, :3] = True
    left, top = np.array([0, 2, 4]), np.array([[0], [2]])
    found = SummedArea(mask).fraction(left, top, left + 2, top + 2)
    np.testing.assert_array_equal(found, [[1, 0.5, 0], [0, 0, 0]])


def test_a_full_mask_is_all_tissue_inside_and_none_outside() -> None:
    area = SummedArea(np.ones((5, 5), dtype=bool))
    assert area.fraction(0, 0, 5, 5) == 1
    assert area.fraction(-3, 0, 0, 5) == 0
    assert area.fraction(9, 9, 12, 12) == 0
    assert area.fraction(-5, 0, 5, 5) == 0.5


def test_a_rectangle_below_one_pixel_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least one mask pixel; got a side of 0\..*finer mpp"):
        SummedArea(np.ones((5, 5), dtype=bool)).fraction([0, 1.1], 0, [2, 1.3], 2)


def test_a_mask_that_is_not_bool_is_refused() -> None:
    with pytest.raises(ValueError, match="2-D bool mask; got uint8"):
        SummedArea(np.ones((5, 5), dtype=np.uint8))
    with pytest.raises(ValueError, match="2-D bool mask; got uint8"):
        encode_mask(np.ones((5, 5), dtype=np.uint8))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 999))
def test_a_mask_survives_its_bytes(height: int, width: int, share: float, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    decoded = decode_mask(encode_mask(mask))
    assert decoded.dtype == np.bool_
    np.testing.assert_array_equal(decoded, mask)


def test_the_bytes_are_a_one_bit_png(generator: np.random.Generator) -> None:
    png = encode_mask(generator.random((100, 100)) < 0.5)
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert png[24] == 1  # bit depth in IHDR
    assert len(png) < 100 * 100 / 8 * 1.3
    assert cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_GRAYSCALE).max() == 255


@pytest.mark.parametrize("damaged", [b"", b"nonsense", b"\x89PNG\r\n\x1a\n"])
def test_bytes_that_are_no_picture_are_refused(damaged: bytes) -> None:
    with pytest.raises(ValueError, match="needs the bytes of a PNG"):
        decode_mask(damaged)


def test_area_counts_pixels_times_their_area() -> None:
    mask = np.zeros((100, 100), dtype=bool)
    mask[:50] = True
    assert tissue_area_mm2(TissueMask(mask, 10.0)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("size", "slide_mpp", "mask_mpp", "shape"),
    [
        (Size(160, 120), 0.5, 4.0, (15, 20)),
        (Size(161, 120), 0.5, 4.0, (15, 21)),
        (Size(3, 2), 0.5, 80.0, (1, 1)),
        (Size(30, 20), 0.1, 0.3, (7, 10)),  # 30 * 0.1 / 0.3 is a little above 10
    ],
)
def test_a_mask_covers_its_slide(
    size: Size, slide_mpp: float, mask_mpp: float, shape: tuple[int, int]
) -> None:
    assert mask_shape(size, slide_mpp=slide_mpp, mask_mpp=mask_mpp) == shape


@given(
    width=st.integers(1, 400_000),
    height=st.integers(1, 400_000),
    slide_mpp=st.floats(0.1, 10),
    mask_mpp=st.floats(0.5, 100),
)
def test_a_mask_is_as_fine_as_wanted_unless_the_slide_or_memory_forbid(
    width: int, height: int, slide_mpp: float, mask_mpp: float
) -> None:
    size = Size(width, height)
    bounded = bounded_mask_mpp(size, slide_mpp=slide_mpp, mask_mpp=mask_mpp)
    rows, columns = mask_shape(size, slide_mpp=slide_mpp, mask_mpp=bounded)
    assert rows * columns <= MAX_MASK_PX
    if bounded > max(mask_mpp, slide_mpp):  # then it had to be, and is by little more than needed
        rows, columns = mask_shape(size, slide_mpp=slide_mpp, mask_mpp=bounded / 1.01)
        assert rows * columns > MAX_MASK_PX
    else:
        assert bounded == max(mask_mpp, slide_mpp)
