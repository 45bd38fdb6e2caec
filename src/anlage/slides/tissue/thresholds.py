"""Published tissue rules that look at one pixel's colour: HSV bounds, and luminance below Otsu."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from anlage.slides.tissue.histogram import histogram, otsu_threshold

HSV_LOW, HSV_HIGH = (90, 8, 103), (180, 255, 255)  # OpenCV's hue is half a degree, 0 to 179
HSV_MPP = 8.0
N_SUMS = 3 * 255 + 1

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def tissue_by_hsv(pixels: Pixels, mpp: float) -> Mask:
    """Pixels whose hue, saturation and value lie within the bounds that Virchow used.

    Hue 180 to 360 degrees (cyan over blue and violet to red), saturation from 8 and value from 103
    of 255. Nothing is cleaned up: neither paper mentions it. Brown (DAB), yellow and green stains
    lie outside the bounds; black ink and folds too.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        mpp: Their resolution; 8 as published (16 times 0.5). Each pixel is judged by itself.

    Returns:
        (H, W) bool, True on tissue.

    Source: Vorontsov et al. 2024, Virchow, arXiv:2309.07778 (HSV at 16x downsample); bounds as in
    the open re-implementations, since the paper does not print them.
    """
    del mpp
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
    return np.asarray(cv2.inRange(hsv, HSV_LOW, HSV_HIGH) > 0)


def tissue_by_luminance(pixels: Pixels, mpp: float) -> Mask:
    """Pixels darker than Otsu's threshold on the mean of red, green and blue over the slide.

    What Prov-GigaPath does before it keeps tiles with more than a tenth of tissue
    (``min_tissue`` 0.1). Otsu always splits: of a blank slide it calls the darker half of the
    noise tissue, and of fluorescence the background.

    Args:
        pixels: (H, W, 3) uint8 RGB, the whole slide.
        mpp: Their resolution; any.

    Returns:
        (H, W) bool, True on tissue.

    Source: Xu et al. 2024, Prov-GigaPath, Nature, Methods; github.com/prov-gigapath. There the mean
    is rounded to half precision and the histogram has 256 bins; here the sum of the channels is
    exact and has a bin each, which moves the threshold by less than a grey level.
    """
    del mpp
    total = pixels.sum(axis=2, dtype=np.uint16)
    return np.asarray(total <= otsu_threshold(histogram(total, N_SUMS)))
