"""Colour changes of one RGB picture on the CPU, the same as those of batches elsewhere.

Each is that of ``colour``, ``stain`` or ``resample`` that its docstring names. A picture is
(H, W, 3) float32 in [0, 1], channels last, as OpenCV takes it: on one core its loops
are several times as quick as a tensor operation for every step. Each function gives a new picture
in [0, 1] and leaves its own alone. Nothing is summed in parallel, so the number of threads does not
change a bit.
"""

from __future__ import annotations

from math import exp
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from anlage.tiles.augment import colour
from anlage.tiles.augment.stain import DARKEST

Picture = NDArray[np.float32]
Floats = NDArray[np.float64]

TO_GREY_33 = np.tile(np.array(colour.LUMINANCE, np.float32), (3, 1))
SAME_33 = np.eye(3, dtype=np.float32)
SAME_34 = np.eye(3, 4, dtype=np.float32)  # the last column is added
PARTS = (np.arange(256) / 255).astype(np.float32)[None]
LIGHTEST_TAP = 1e-5  # of a blur; three thousandths of a byte
JUST_BELOW_ONE = 1 - 1e-6  # the sum of a blur's taps: rounding then cannot leave [0, 1]


def from_bytes(bytes_HW3: NDArray[np.uint8]) -> Picture:
    """The bytes over 255."""
    return _picture(cv2.LUT(bytes_HW3, PARTS))


def brighten(picture: Picture, factor: float) -> Picture:
    """``colour.brighten``."""
    brighter = np.multiply(picture, np.float32(factor))
    return _at_most_one(brighter) if factor > 1 else brighter


def contrast(picture: Picture, factor: float) -> Picture:
    """``colour.contrast``."""
    of_channels = zip(colour.LUMINANCE, cv2.mean(picture), strict=False)  # and a mean of nothing
    change_34 = factor * SAME_34
    change_34[:, 3] = (1 - factor) * sum(weight * mean for weight, mean in of_channels)
    return _blend(picture, change_34, factor)


def saturate(picture: Picture, factor: float) -> Picture:
    """``colour.saturate``."""
    return _blend(picture, factor * SAME_33 + (1 - factor) * TO_GREY_33, factor)


def shift_hue(picture: Picture, factor: float) -> Picture:
    """``colour.shift_hue``: through HSV, with hue in degrees, which OpenCV wraps upwards only."""
    hsv = _picture(cv2.cvtColor(picture, cv2.COLOR_RGB2HSV))
    hsv[..., 0] += np.float32(360 * (factor % 1))
    return _picture(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))


def grayscale(picture: Picture) -> Picture:
    """``colour.luminance``, (H, W): blur and solarize take it as it is."""
    return _picture(cv2.transform(picture, TO_GREY_33[:1]))


def solarize(picture: Picture) -> Picture:
    """``colour.solarize``."""
    return _picture(colour.solarize(torch.from_numpy(picture)).numpy())


def blur(picture: Picture, *, sigma: float, kernel_px: int) -> Picture:
    """``resample.blur_weights`` on both axes."""
    half = kernel_px // 2
    taps = [exp(-0.5 * (tap / sigma) ** 2) for tap in range(-half, half + 1)]
    taps = [tap for tap in taps if tap > LIGHTEST_TAP]
    kernel_K = np.array(taps, np.float32) * (JUST_BELOW_ONE / sum(taps))
    reflect = cv2.BORDER_REFLECT_101
    return _picture(cv2.sepFilter2D(picture, -1, kernel_K, kernel_K, borderType=reflect))


def jitter_stains(
    picture: Picture, factor_3: Floats, offset_3: Floats, *, basis_33: Floats
) -> Picture:
    """``stain.jitter_stains``; logarithms of values are densities with the sign turned."""
    change_33 = np.linalg.inv(basis_33) @ (factor_3[:, None] * basis_33)
    change_34 = np.column_stack([change_33.T, -offset_3 @ basis_33]).astype(np.float32)
    logarithm = cv2.log(np.maximum(picture, np.float32(DARKEST)))
    return _at_most_one(cv2.exp(cv2.transform(logarithm, change_34)))


def _blend(picture: Picture, change: Picture, factor: float) -> Picture:
    """Linear change of the channels; a factor of at most 1 cannot leave [0, 1]."""
    blended = _picture(cv2.transform(picture, change))
    return blended.clip(0, 1, out=blended) if factor > 1 else blended


def _at_most_one(picture: NDArray[Any]) -> Picture:
    cv2.threshold(picture, 1.0, 0.0, cv2.THRESH_TRUNC, dst=picture)
    return picture


def _picture(array: NDArray[Any]) -> Picture:
    """For the type: OpenCV's do not tell it."""
    return array
