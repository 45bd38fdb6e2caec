from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from fractions import Fraction
from math import ceil
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from sparse_slide import SparseSlide
from synthetic_slides import ArraySlide

from anlage.slides import masks
from anlage.slides.masks import TissueMask
from anlage.slides.reader import open_slide
from anlage.slides.tissue import TissueFinder, find_slide_tissue, find_tissue, tissue_method
from anlage.slides.tissue.on_slide import coarser, lost_share

TESTS = Path(__file__).parents[2]
PINK, BROWN = (200, 120, 170), (150, 90, 20)


def slide(colour: tuple[int, int, int] = PINK, *, mpp: float = 4.0) -> ArraySlide:
    """A block of 400 x 600 px of tissue on 1,000 x 1,200 px of glass."""
    picture = np.full((1000, 1200, 3), 243, np.uint8)
    noise = np.random.default_rng(3).normal(0, 3, (400, 600, 3))
    picture[200:600, 400:1000] = np.clip(np.array(colour) + noise, 0, 255)
    return ArraySlide([picture], mpp=mpp)


def block(mask_px: int) -> np.ndarray:
    mask = np.zeros((ceil(1000 / mask_px), ceil(1200 / mask_px)), bool)
    mask[200 // mask_px : 600 // mask_px, 400 // mask_px : 1000 // mask_px] = True
    return mask


def test_the_default_is_otsu_on_the_overview() -> None:
    found = find_slide_tissue(slide(), mask_mpp=8.0)
    assert found.tissue.mpp == found.overview_mpp == 8.0
    assert np.array_equal(found.tissue.mask, find_tissue(found.overview, mpp=8.0))
    assert found.warning is None


@pytest.mark.parametrize(
    ("method", "mask_mpp", "overview_mpp", "becomes"),
    [
        ("otsu", 2.0, 4.0, 4.0),  # never finer than the slide
        ("otsu", 32.0, 32.0, 32.0),
        ("hsv", 4.0, 8.0, 8.0),  # nor than what the method has to see
        ("hsv", 8.0, 8.0, 8.0),
        ("hsv", 32.0, 8.0, 32.0),  # found at 8, reduced to 32
        ("luminance", 4.0, 4.0, 4.0),
        ("clam", 8.0, 16.0, 16.0),
    ],
)
def test_a_mask_is_no_finer_than_its_slide_and_method(
    method: str, mask_mpp: float, overview_mpp: float, becomes: float
) -> None:
    found = find_slide_tissue(slide(), tissue_method(method), mask_mpp=mask_mpp)
    assert (found.overview_mpp, found.tissue.mpp) == (overview_mpp, becomes)
    expected = block(round(becomes / 4))
    assert found.tissue.mask.shape == expected.shape
    assert (found.tissue.mask != expected).mean() < 0.03


def test_a_method_in_blocks_comes_with_an_overview_at_the_masks_resolution() -> None:
    net = TissueFinder(
        name="net", find=lambda p, _: p[..., 1] < 200, mpp=4.0, block_px=128, halo_px=8
    )
    found = find_slide_tissue(slide(), net, mask_mpp=16.0)
    assert (found.overview_mpp, found.tissue.mpp) == (16.0, 16.0)
    assert np.array_equal(found.tissue.mask, block(4))
    coarse = TissueFinder(name="net", find=lambda p, _: p[..., 1] < 200, mpp=20.0, block_px=128)
    found = find_slide_tissue(slide(), coarse, mask_mpp=8.0)
    assert (found.overview_mpp, found.tissue.mpp) == (8.0, 20.0)


def test_a_method_that_loses_most_of_the_tissue_is_told_of() -> None:
    kept = find_slide_tissue(slide(), tissue_method("hsv"))
    assert kept.warning is None
    lost = find_slide_tissue(slide(BROWN), tissue_method("hsv"))
    assert lost.warning is not None
    assert "'hsv' leaves out 100% of the tissue that Otsu's finds" in lost.warning
    assert "anlage masks show" in lost.warning
    blank = ArraySlide([np.full((500, 500, 3), 243, np.uint8)], mpp=4.0)
    assert find_slide_tissue(blank, tissue_method("hsv")).warning is None


def test_the_lost_share_is_counted_at_the_references_pixels() -> None:
    reference = TissueMask(np.ones((4, 6), bool), 4.0)
    half = TissueMask(np.repeat([[True, False, False]], 2, axis=0), 8.0)
    assert lost_share(half, reference) == pytest.approx(2 / 3)
    assert lost_share(reference, reference) == 0
    assert lost_share(half, TissueMask(np.zeros((4, 6), bool), 4.0)) == 0


@given(
    mask=arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12)),
    per_px=st.integers(1, 5),
)
@settings(deadline=None)
def test_a_coarser_mask_is_tissue_where_half_of_a_pixel_is(mask: np.ndarray, per_px: int) -> None:
    found = coarser(TissueMask(mask, 2.0), 2.0 * per_px)
    assert found.mpp == 2.0 * per_px
    for (row, column), is_tissue in np.ndenumerate(found.mask):
        part = mask[row * per_px : (row + 1) * per_px, column * per_px : (column + 1) * per_px]
        assert is_tissue == (Fraction(int(part.sum()), part.size) >= Fraction(1, 2))


@pytest.mark.parametrize("per_px", [1.25, 1.5, 2.3, 7.9])
def test_a_coarser_mask_at_any_ratio_keeps_its_place(per_px: float) -> None:
    mask = np.zeros((90, 110), bool)
    mask[20:70, 30:80] = True
    found = coarser(TissueMask(mask, 1.0), per_px).mask
    assert found.shape == (ceil(90 / per_px), ceil(110 / per_px))
    back = cv2.resize(
        found.astype(np.uint8), None, fx=per_px, fy=per_px, interpolation=cv2.INTER_NEAREST
    )
    assert (back[:90, :110].astype(bool) != mask).mean() < 0.03 * per_px


def test_a_mask_too_large_gets_coarser_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(masks, "MAX_MASK_PX", 30_000)
    with caplog.at_level(logging.INFO, logger="anlage"):
        found = find_slide_tissue(slide(), mask_mpp=4.0)
    assert 29_000 < found.tissue.mask.size <= 30_000
    assert found.overview.shape[:2] == found.tissue.mask.shape
    assert "at 4 it would have more than" in caplog.text


def took(*arguments: object) -> dict[str, float]:
    """What finding the tissue of a sparse slide gives, and the memory it takes, by itself."""
    run = subprocess.run(
        [sys.executable, TESTS / "sparse_slide.py", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    said: dict[str, float] = json.loads(run.stdout)
    return said


@pytest.mark.parametrize("method", ["otsu", "blocks"])
def test_a_large_slide_of_one_level_takes_little_memory(method: str) -> None:
    said = took(16_000, 12_000, "1", method, 8)  # 576 MB of pixels
    assert said["mpp"] == 8
    assert said["share"] == pytest.approx(0.04, rel=0.02)
    assert said["took_mb"] < 250


@pytest.mark.slow
@pytest.mark.parametrize("method", ["otsu", "luminance"])
def test_the_finest_mask_of_a_huge_slide_takes_bounded_memory(method: str) -> None:
    said = took(200_000, 150_000, "1,4,16", method, 0.5)  # 90 GB of pixels
    assert said["mpp"] == pytest.approx(5.42, abs=0.01)
    assert said["share"] == pytest.approx(0.04, rel=0.02)
    assert said["took_mb"] < 1600


def test_the_sparse_slide_is_what_it_says() -> None:
    pixels = SparseSlide(100, 50, mpp=0.25, downsamples=(1,)).read_region(0, 0, 100, 50)
    assert (pixels[20:30, 40:60] == PINK).all()
    assert (pixels == 243).all(axis=2).sum() == 5000 - 200


# Tissue shares on whole slides, in per cent, and what docs/how_to/tissue_masks.md says of them.
SHARES = {
    "brain-mucormycosis__GMS": {"otsu": 49, "hsv": 10, "luminance": 42, "clam": 53},
    "helicobacterpylori__warthinstarry": {"otsu": 45, "hsv": 1, "luminance": 37, "clam": 54},
    "amyloid__crystalviolet": {"otsu": 32, "hsv": 91, "luminance": 28, "clam": 91},
    "glycogenstorage__PAS": {"otsu": 27, "hsv": 50, "luminance": 23, "clam": 45},
    "glycogenstorage__PASD": {"otsu": 22, "hsv": 24, "luminance": 13, "clam": 24},
    "helicobacterpylori__giemsa": {"otsu": 40, "hsv": 43, "luminance": 36, "clam": 43},
    "helicobacterpylori__IHC": {"otsu": 34, "hsv": 23, "luminance": 23, "clam": 24},
}


@pytest.mark.parametrize("name", SHARES)
def test_every_method_finds_on_a_stain_what_the_guide_says(shared_data: Path, name: str) -> None:
    with open_slide(shared_data / "slides" / "wholeslide" / f"{name}.tiff") as whole:
        found = {m: find_slide_tissue(whole, tissue_method(m)) for m in SHARES[name]}
    shares = {method: 100 * seen.tissue.mask.mean() for method, seen in found.items()}
    assert shares == pytest.approx(SHARES[name], abs=1)
    is_told = {method for method, seen in found.items() if seen.warning}
    assert is_told == {method for method, share in shares.items() if share < 12}
