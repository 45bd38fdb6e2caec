from __future__ import annotations

from fractions import Fraction
from math import ceil, floor

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_slides import ArraySlide, halved, tissue_like

from anlage.errors import ResolutionError, TissueError
from anlage.slides.tissue.blocks import find_by_blocks
from anlage.slides.tissue.finder import TissueFinder

REACH = 3  # pixels that the method below looks around


def smooth_green(pixels: np.ndarray, mpp: float) -> np.ndarray:
    """A method with a receptive field of 7 px: a box filter, then a threshold."""
    del mpp
    box = cv2.blur(pixels[..., 1].astype(np.float32), (7, 7), borderType=cv2.BORDER_CONSTANT)
    return np.asarray(box > 120)


def finder(mpp: float, *, block_px: int, halo_px: int = REACH) -> TissueFinder:
    return TissueFinder(name="net", find=smooth_green, mpp=mpp, block_px=block_px, halo_px=halo_px)


def on_the_whole(picture: np.ndarray, *, shape: tuple[int, int], ratio: Fraction) -> np.ndarray:
    """The method on one picture with white around; then majority by pixel centres, one by one."""
    white = cv2.copyMakeBorder(
        picture, *[REACH] * 4, borderType=cv2.BORDER_CONSTANT, value=(255, 255, 255)
    )
    found = smooth_green(white, 1.0)[REACH:-REACH, REACH:-REACH]
    votes: dict[tuple[int, int], list[bool]] = {}
    for (row, column), is_tissue in np.ndenumerate(found):
        place = tuple(floor((Fraction(i) + Fraction(1, 2)) / ratio) for i in (row, column))
        votes.setdefault(place, []).append(bool(is_tissue))
    mask = np.zeros(shape, bool)
    for place, cast in votes.items():
        mask[place] = 2 * sum(cast) >= len(cast)
    return mask


@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    block_px=st.integers(1, 40),
    ratio=st.fractions(1, 9, max_denominator=4),
)
@settings(deadline=None, max_examples=25)
def test_blocks_meet_without_a_seam(size: tuple[int, int], block_px: int, ratio: Fraction) -> None:
    picture = tissue_like(*size)
    slide = ArraySlide([picture], mpp=0.5)
    found = find_by_blocks(slide, finder(0.5, block_px=block_px), mask_mpp=float(ratio) / 2)
    shape = tuple(ceil(n / ratio) for n in picture.shape[:2])
    assert found.mpp == float(ratio) / 2
    assert np.array_equal(found.mask, on_the_whole(picture, shape=shape, ratio=ratio))


def test_a_mask_pixel_of_which_half_is_tissue_counts() -> None:
    picture = np.full((8, 12, 3), 255, np.uint8)
    picture[:, 1::2] = 0  # every second column
    picture[2, 3] = 255
    net = TissueFinder(name="net", find=lambda p, _: p[..., 0] < 99, mpp=1.0, block_px=3)
    found = find_by_blocks(ArraySlide([picture], mpp=1.0), net, mask_mpp=2.0).mask
    expected = np.ones((4, 6), bool)
    expected[1, 1] = False  # a quarter of it
    assert np.array_equal(found, expected)


def test_without_a_halo_there_are_seams() -> None:
    """The test above can fail: the halo is what makes it pass."""
    slide = ArraySlide([tissue_like(90, 70)], mpp=0.5)
    whole = find_by_blocks(slide, finder(0.5, block_px=200), mask_mpp=0.5)
    blocks = find_by_blocks(slide, finder(0.5, block_px=20, halo_px=0), mask_mpp=0.5)
    assert (whole.mask != blocks.mask).any()


def test_the_method_sees_its_own_resolution() -> None:
    seen = []

    def note(pixels: np.ndarray, mpp: float) -> np.ndarray:
        seen.append((pixels.shape, mpp, round(float(pixels.mean()))))
        return pixels[..., 0] < 200

    picture = tissue_like(400, 300)
    slide = ArraySlide([picture, halved(picture)], mpp=0.25)
    net = TissueFinder(name="net", find=note, mpp=1.0, block_px=50, halo_px=4)
    find_by_blocks(slide, net, mask_mpp=8.0)
    assert {(shape, mpp) for shape, mpp, _ in seen} == {((58, 58, 3), 1.0)}
    assert len(seen) == 4  # 100 x 75 pixels


@pytest.mark.parametrize(("slide_mpp", "net_mpp"), [(0.25, 1.1), (0.2503, 0.5), (0.5, 0.5)])
def test_a_square_stays_where_it_is(slide_mpp: float, net_mpp: float) -> None:
    picture = np.full((900, 1000, 3), 255, np.uint8)
    picture[600:800, 700:900] = 30
    slide = ArraySlide([picture], mpp=slide_mpp)
    net = TissueFinder(
        name="net", find=lambda p, _: p[..., 0] < 140, mpp=net_mpp, block_px=64, halo_px=5
    )
    found = find_by_blocks(slide, net, mask_mpp=8.0 * slide_mpp)
    rows, columns = (np.flatnonzero(found.mask.any(axis=axis)) for axis in (1, 0))
    edges = np.array([rows[0], rows[-1] + 1, columns[0], columns[-1] + 1]) * 8
    assert np.abs(edges - [600, 800, 700, 900]).max() <= 8


def test_a_slide_too_coarse_for_the_method_is_refused() -> None:
    slide = ArraySlide([tissue_like(60, 50)], mpp=2.0)
    with pytest.raises(ResolutionError, match="too coarse for 0.5"):
        find_by_blocks(slide, finder(0.5, block_px=32), mask_mpp=8.0)


def test_a_method_that_fails_or_gives_no_mask_is_named() -> None:
    slide = ArraySlide([tissue_like(60, 50)], mpp=1.0)

    def out_of_memory(pixels: np.ndarray, mpp: float) -> np.ndarray:
        msg = f"no room for {pixels.shape}"
        raise RuntimeError(msg)

    for find, said in (
        (out_of_memory, r"net: failed on .* RuntimeError: no room for \(32, 32, 3\)"),
        (lambda p, _: p[..., 0], "net: needs to give a numpy bool mask .* got uint8"),
        (lambda p, _: p[1:, :, 0] > 0, r"bool mask of shape \(32, 32\); got shape \(31, 32\)"),
        (lambda p, _: None, "got NoneType"),
    ):
        net = TissueFinder(name="net", find=find, mpp=1.0, block_px=32)
        with pytest.raises(TissueError, match=said):
            find_by_blocks(slide, net, mask_mpp=8.0)


def test_what_cannot_be_run_in_blocks_is_refused() -> None:
    slide = ArraySlide([tissue_like(60, 50)], mpp=1.0)
    with pytest.raises(ValueError, match="needs a method with mpp and block_px"):
        find_by_blocks(slide, TissueFinder(name="net", find=smooth_green, mpp=1.0), mask_mpp=8.0)
    with pytest.raises(ValueError, match="a mask no finer than it"):
        find_by_blocks(slide, finder(1.0, block_px=32), mask_mpp=0.5)


@pytest.mark.parametrize(
    "settings",
    [
        {"mpp": 0.0},
        {"mpp": float("inf")},
        {"block_px": 64},
        {"mpp": 1.0, "block_px": 0},
        {"mpp": 1.0, "block_px": 64, "halo_px": -1},
        {"mpp": 1.0, "block_px": 16_000, "halo_px": 300},
    ],
)
def test_a_finder_that_could_not_be_run_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="TissueFinder 'net' needs"):
        TissueFinder(name="net", find=smooth_green, **settings)
