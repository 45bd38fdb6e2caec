"""The colour-and-texture floor: 48 numbers a pathology encoder should beat."""

# Shape suffixes: B tiles, 3 channels, H and W pixels.

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.feature import local_binary_pattern

PATTERNS = ((8, 1), (24, 3))  # (neighbours, radius in pixels)
N_MOMENTS = 12
N_FEATURES = N_MOMENTS + sum(n_neighbours + 2 for n_neighbours, _ in PATTERNS)


def colour_texture_features(pixels_B3HW: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Colour moments and local binary patterns of tiles: no learning, no structure.

    In this order: mean, standard deviation, skewness and kurtosis of the red, green and blue
    channel (mean RGB first, 0 to 255; a flat channel has skewness and kurtosis 0), then the
    shares of the uniform rotation-invariant local binary patterns of the grey tile with 8
    neighbours at radius 1 (10 shares) and 24 neighbours at radius 3 (26 shares).

    Args:
        pixels_B3HW: (B, 3, H, W) uint8 RGB.

    Returns:
        (B, 48) float32.

    Raises:
        ValueError: If the pixels are not (B, 3, H, W) uint8.

    Source: Ojala et al. 2002 (uniform patterns), in scikit-image.
    """
    if pixels_B3HW.ndim != 4 or pixels_B3HW.shape[1] != 3 or pixels_B3HW.dtype != np.uint8:
        msg = (
            "colour_texture_features: needs (B, 3, H, W) uint8 pixels; got "
            f"{pixels_B3HW.shape} {pixels_B3HW.dtype}. Stack RGB tiles channels first."
        )
        raise ValueError(msg)
    features = np.empty((len(pixels_B3HW), N_FEATURES), dtype=np.float32)
    for row, pixels_3HW in zip(features, pixels_B3HW, strict=True):
        row[:N_MOMENTS] = _colour_moments(pixels_3HW)
        row[N_MOMENTS:] = _pattern_shares(pixels_3HW)
    return features


def _colour_moments(pixels_3HW: NDArray[np.uint8]) -> NDArray[np.float64]:
    """From the 256 counts of each channel: exact, and faster than from the pixels."""
    level = np.arange(256, dtype=np.float64)
    count = np.stack([np.bincount(channel.ravel(), minlength=256) for channel in pixels_3HW])
    share = count / count.sum(axis=1, keepdims=True)
    mean = share @ level
    offset = level - mean[:, None]
    second, third, fourth = ((share * offset**power).sum(axis=1) for power in (2, 3, 4))
    deviation = np.sqrt(second)
    safe = np.where(deviation > 0, deviation, 1)
    return np.concatenate([mean, deviation, third / safe**3, fourth / safe**4])


def _pattern_shares(pixels_3HW: NDArray[np.uint8]) -> NDArray[np.float64]:
    grey = cv2.cvtColor(np.ascontiguousarray(pixels_3HW.transpose(1, 2, 0)), cv2.COLOR_RGB2GRAY)
    shares = []
    for n_neighbours, radius_px in PATTERNS:
        pattern = local_binary_pattern(grey, n_neighbours, radius_px, method="uniform")  # type: ignore[no-untyped-call]
        count = np.bincount(pattern.astype(np.int64).ravel(), minlength=n_neighbours + 2)
        shares.append(count / grey.size)
    return np.concatenate(shares)
