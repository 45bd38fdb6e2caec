from __future__ import annotations

import numpy as np
from scipy import ndimage

from anlage.slides.tissue.clam import tissue_by_clam

PINK, GLASS, SILVER = (200, 120, 170), (243, 242, 244), (150, 150, 150)
MPP = 16.0  # a patch of 128 µm is 8 px; 100 of them 6,400 px, 16 of them 1,024 px


def slide(height: int = 300, width: int = 400) -> np.ndarray:
    return np.full((height, width, 3), GLASS, np.uint8)


def paint(pixels: np.ndarray, top: int, left: int, height: int, width: int, colour=PINK) -> None:
    pixels[top : top + height, left : left + width] = colour


def n_parts(mask: np.ndarray) -> int:
    return int(ndimage.label(mask)[1])


def test_parts_above_a_hundred_patches_stay() -> None:
    pixels = slide()
    paint(pixels, 20, 20, 90, 90)  # 8,100 px
    paint(pixels, 20, 200, 70, 70)  # 4,900 px
    found = tissue_by_clam(pixels, MPP)
    assert found[25:105, 25:105].all()
    assert not found[:, 150:].any()
    assert tissue_by_clam(pixels, MPP * 2)[25:85, 205:265].all()  # each pixel four times the area
    assert not tissue_by_clam(slide(), MPP).any()


def test_a_part_is_measured_without_its_holes() -> None:
    pixels = slide()
    paint(pixels, 20, 20, 100, 100)
    paint(pixels, 35, 35, 70, 70, GLASS)  # 10,000 less 4,900
    assert not tissue_by_clam(pixels, MPP).any()


def test_holes_above_sixteen_patches_stay_open() -> None:
    pixels = slide()
    paint(pixels, 20, 20, 200, 200)
    paint(pixels, 60, 60, 40, 40, GLASS)  # 1,600 px
    paint(pixels, 60, 140, 24, 24, GLASS)  # 576 px
    found = tissue_by_clam(pixels, MPP)
    assert not found[65:95, 65:95].any()
    assert found[55:90, 135:170].all()


def test_only_the_eight_largest_holes_of_a_part_stay_open() -> None:
    pixels = slide(600, 700)
    paint(pixels, 10, 10, 280, 680)
    paint(pixels, 310, 10, 280, 680)
    sizes = [40 + i for i in range(12)]
    for i, size in enumerate(sizes):
        top, left = 30 + 130 * (i // 6), 30 + 105 * (i % 6)
        paint(pixels, top, left, size, size, GLASS)
        if i < 3:
            paint(pixels, 300 + top, left, size, size, GLASS)
    found = tissue_by_clam(pixels, MPP)
    is_open = [
        not found[30 + 130 * (i // 6) + 20, 30 + 105 * (i % 6) + 20] for i in range(len(sizes))
    ]
    assert is_open == [False] * 4 + [True] * 8
    assert n_parts(~found[320:580, 20:680]) == 3  # those of the other part count for themselves


def test_an_island_too_small_goes_with_its_hole() -> None:
    pixels = slide()
    paint(pixels, 20, 20, 200, 200)
    paint(pixels, 40, 40, 60, 60, GLASS)
    paint(pixels, 60, 60, 20, 20)
    assert not tissue_by_clam(pixels, MPP)[45:95, 45:95].any()


def test_gaps_of_a_few_pixels_close() -> None:
    pixels = slide()
    paint(pixels, 20, 20, 120, 80)
    paint(pixels, 20, 102, 120, 80)
    assert n_parts(tissue_by_clam(pixels, MPP)) == 1


def test_grey_stains_are_not_seen() -> None:
    """What the method does, as its description warns."""
    pixels = slide()
    paint(pixels, 20, 20, 200, 200, SILVER)
    assert not tissue_by_clam(pixels, MPP).any()
