"""Find the tissue on a slide: Otsu's threshold on what differs from the glass."""

from __future__ import annotations

from math import ceil

import cv2
import numpy as np
from numpy.typing import NDArray

from anlage.slides.tissue.histogram import histogram, median, ranked

MEDIAN_PX = 5
CLOSE_PX = 5
THRESHOLD_FLOOR = 12  # of 255; below it lie scanner noise, uneven light and JPEG tint
THRESHOLD_CEILING = 20  # of 255; a window of tissue must not be split into pale and dark tissue
MIN_AREA_MM2 = 0.005
DARK_BACKGROUND = 64  # of 255; a slide whose median brightness is below is fluorescence
BLACK = 24  # of 255; saturation of darker pixels is noise (ink, the scanner's missing fields)
GLASS_MAX_SATURATION = 40
GLASS_SHARE = 0.02

Plane = NDArray[np.uint8]


def find_tissue(pixels: Plane, *, mpp: float) -> NDArray[np.bool_]:
    """Tissue of an RGB picture.

    Bright field: HSV saturation, or darkness where that is more (grey IHC), both against the
    colour of the slide's own glass, median-blurred, above Otsu's threshold held within [12, 20]
    of 255: the floor keeps a blank slide empty, the ceiling keeps pale tissue (mucin, stroma)
    where a slide is mostly strong. On a dark background (fluorescence) it is the brightness, with
    the same floor and no ceiling. Then gaps are closed; tissue and holes below 0.005 mm² dropped.
    Nearly black pixels (unscanned fields) are no tissue in bright field; ink and folds are.

    Args:
        pixels: (H, W, 3) uint8 RGB, the whole slide.
        mpp: Their resolution, micrometres per pixel.

    Returns:
        (H, W) bool, True on tissue.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        msg = f"find_tissue needs (H, W, 3) uint8; got {pixels.dtype} of shape {pixels.shape}."
        raise ValueError(msg)
    is_dark = median(histogram(_brightness(pixels), 256)) < DARK_BACKGROUND
    contrast = _brightness(pixels) if is_dark else _contrast_to_glass(pixels)
    signal = cv2.medianBlur(contrast, MEDIAN_PX)
    ceiling = 255 if is_dark else THRESHOLD_CEILING
    otsu, _ = cv2.threshold(signal, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    is_tissue = (signal > np.clip(otsu, THRESHOLD_FLOOR, ceiling)).astype(np.uint8)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (CLOSE_PX, CLOSE_PX))
    closed = np.asarray(cv2.morphologyEx(is_tissue, cv2.MORPH_CLOSE, kernel), dtype=np.bool_)
    smallest_px = MIN_AREA_MM2 / (mpp / 1000) ** 2
    tissue = _drop_small(closed, smallest_px)
    return ~_drop_small(~tissue, smallest_px) if tissue.any() else tissue


def _brightness(pixels: Plane) -> Plane:
    return np.asarray(pixels.max(axis=2), dtype=np.uint8)


def _contrast_to_glass(pixels: Plane) -> Plane:
    """The larger of saturation and darkness once the glass is made white; 0 where nearly black."""
    brightness = _brightness(pixels)
    balance = np.arange(256)[:, None] * (255 / _glass_colour(pixels, brightness))
    table = np.rint(balance).clip(0, 255).astype(np.uint8)[:, None, :]
    balanced = cv2.cvtColor(cv2.LUT(pixels, table), cv2.COLOR_RGB2HSV)
    contrast = np.maximum(balanced[..., 1], 255 - balanced[..., 2])
    contrast[brightness < BLACK] = 0
    return np.asarray(contrast, dtype=np.uint8)


def _glass_colour(pixels: Plane, brightness: Plane) -> NDArray[np.float64]:
    """Median colour of the brightest fiftieth where it is pale; white where it is not."""
    counts = histogram(brightness, 256)
    faintest = ranked(counts, ceil((brightness.size - 1) * (1 - GLASS_SHARE)))
    is_brightest = brightness >= faintest
    glass = np.array([median(histogram(pixels[..., c][is_brightest], 256)) for c in range(3)])
    saturation = 255 * (1 - glass.min() / max(glass.max(), 1))
    return glass if saturation <= GLASS_MAX_SATURATION else np.full(3, 255.0)


def _drop_small(mask: NDArray[np.bool_], smallest_px: float) -> NDArray[np.bool_]:
    """The mask without connected parts of fewer pixels than ``smallest_px``."""
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    keep = statistics[:, cv2.CC_STAT_AREA] >= smallest_px
    keep[0] = False  # label 0 is what was False
    return np.asarray(keep[labels])
