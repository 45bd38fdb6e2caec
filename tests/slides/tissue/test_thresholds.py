from __future__ import annotations

import colorsys
import itertools

import numpy as np
import pytest
from skimage.filters import threshold_otsu

from anlage.slides.tissue.histogram import histogram, otsu_threshold
from anlage.slides.tissue.thresholds import tissue_by_hsv, tissue_by_luminance
from reference.slow_otsu import slow_otsu


def of_colour(*colour: int) -> np.ndarray:
    return np.full((1, 1, 3), colour, np.uint8)


@pytest.mark.parametrize(
    ("colour", "is_tissue"),
    [
        ((200, 120, 170), True),  # eosin
        ((90, 60, 150), True),  # haematoxylin
        ((255, 0, 0), False),  # hue 0: red itself lies at the other end of the circle
        ((255, 0, 5), True),  # hue 359 degrees
        ((0, 255, 255), True),  # hue 180 degrees, the lower bound
        ((0, 255, 246), False),  # hue 178
        ((150, 90, 20), False),  # DAB
        ((255, 255, 255), False),  # glass
        ((250, 242, 250), True),  # saturation 8
        ((250, 243, 250), False),  # saturation 7
        ((103, 60, 103), True),  # value 103
        ((102, 60, 102), False),
        ((90, 90, 90), False),  # silver
        ((10, 10, 40), False),  # ink
    ],
)
def test_hsv_bounds_are_kept(colour: tuple[int, int, int], is_tissue: bool) -> None:
    assert tissue_by_hsv(of_colour(*colour), 8.0)[0, 0] == is_tissue


def test_hsv_is_what_the_formula_of_the_colour_circle_gives() -> None:
    levels = range(0, 256, 15)
    colours = np.array(list(itertools.product(levels, levels, levels)), np.uint8)
    found = tissue_by_hsv(colours[None], 8.0)[0]
    n_decided = 0
    for colour, is_tissue in zip(colours / 255, found, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*colour)
        margins = (hue * 180 - 90, saturation * 255 - 8, value * 255 - 103, 179.5 - hue * 180)
        if min(map(abs, margins)) < 0.6:  # where rounding to a byte decides
            continue
        n_decided += 1
        assert is_tissue == (min(margins) > 0), colour
    assert n_decided > 0.9 * len(colours)


def stained(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    is_tissue = np.zeros((80, 90), bool)
    is_tissue[20:60, 30:70] = True
    colour = np.where(is_tissue[..., None], (200, 120, 170), (240, 241, 239))
    return np.clip(generator.normal(colour, 4), 0, 255).astype(np.uint8), is_tissue


def test_luminance_is_the_mean_of_the_channels_below_otsu(generator: np.random.Generator) -> None:
    pixels, is_tissue = stained(generator)
    assert np.array_equal(tissue_by_luminance(pixels, 8.0), is_tissue)
    noisy = generator.integers(0, 256, (60, 60, 3)).astype(np.uint8)
    total = noisy.sum(axis=2, dtype=int)
    assert np.array_equal(tissue_by_luminance(noisy, 8.0), total <= slow_otsu(total.ravel()))


def test_luminance_is_near_the_published_half_precision_histogram(
    generator: np.random.Generator,
) -> None:
    pixels = generator.integers(0, 256, (200, 200, 3)).astype(np.uint8)
    published = threshold_otsu(pixels.mean(axis=2, dtype=np.float16))
    total = pixels.sum(axis=2, dtype=np.uint16)
    ours = otsu_threshold(histogram(total, 766)) / 3
    assert abs(ours - float(published)) < 1.5


def test_luminance_takes_the_dark_ground_of_fluorescence(generator: np.random.Generator) -> None:
    """What the method does, as its description warns."""
    pixels, is_tissue = stained(generator)
    assert np.array_equal(tissue_by_luminance(255 - pixels, 8.0), ~is_tissue)
