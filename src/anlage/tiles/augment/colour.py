"""Colour changes of RGB batches in [0, 1]; each image has its own strength.

Shape suffixes: N images, C = 3 channels, H rows, W columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

LUMINANCE = (0.2989, 0.587, 0.114)
SOLARIZE_THRESHOLD = 128 / 255  # PIL inverts the bytes 128 to 255


def luminance(image_N3HW: Tensor) -> Tensor:
    """Grey value, (N, 1, H, W), of RGB images by the ITU-R 601 weights."""
    red, green, blue = image_N3HW.unbind(1)
    of_red, of_green, of_blue = LUMINANCE
    grey = torch.mul(red, of_red).add_(green, alpha=of_green).add_(blue, alpha=of_blue)
    return grey[:, None]


def brighten(image_N3HW: Tensor, factor_N: Tensor) -> Tensor:
    """Multiply each image by its factor (>= 0; 1 changes nothing), clamped to [0, 1]."""
    return (image_N3HW * factor_N[:, None, None, None]).clamp_(0, 1)


def contrast(image_N3HW: Tensor, factor_N: Tensor) -> Tensor:
    """Move each image away from (factor > 1) or towards (< 1) its mean grey."""
    mean_N111 = luminance(image_N3HW).mean(dim=(1, 2, 3), keepdim=True)
    return _blend(image_N3HW, mean_N111, factor_N)


def saturate(image_N3HW: Tensor, factor_N: Tensor) -> Tensor:
    """Move each pixel away from (factor > 1) or towards (< 1) its own grey."""
    return _blend(image_N3HW, luminance(image_N3HW), factor_N)


def _blend(image_N3HW: Tensor, other: Tensor, factor_N: Tensor) -> Tensor:
    factor_N111 = factor_N[:, None, None, None]
    return (image_N3HW * factor_N111).add_(other * (1 - factor_N111)).clamp_(0, 1)


def shift_hue(image_N3HW: Tensor, factor_N: Tensor) -> Tensor:
    """Turn the hue of each image by a part of the circle, keeping HSV saturation and value.

    HSV in closed form: with sextant k_c = (5, 3, 1)_c + 6 hue, modulo 6,
    channel c = value - chroma * clamp(min(k_c, 4 - k_c), 0, 1); saturation is never needed.

    Args:
        image_N3HW: (N, 3, H, W) in [0, 1].
        factor_N: (N,) turns in [-0.5, 0.5]; 0.5 is the opposite hue.

    Returns:
        (N, 3, H, W) in [0, 1].
    """
    red, green, blue = image_N3HW.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    inverse = torch.where(chroma == 0, 1.0, chroma).reciprocal_()
    sextant = torch.where(
        value == red,
        (green - blue) * inverse,
        torch.where(
            value == green,
            (blue - red).mul_(inverse).add_(2),
            (red - green).mul_(inverse).add_(4),
        ),
    )
    sextant.add_(6 * factor_N[:, None, None])
    turned = torch.empty_like(image_N3HW)
    for channel, offset in enumerate((5.0, 3.0, 1.0)):
        k = (sextant + offset).remainder_(6)
        share = torch.minimum(k, 4 - k).clamp_(0, 1)
        torch.addcmul(value, chroma, share, value=-1, out=turned[:, channel])
    return turned.clamp_(0, 1)


def solarize(image_N3HW: Tensor) -> Tensor:
    """Invert every value of at least 128 / 255."""
    return torch.where(image_N3HW >= SOLARIZE_THRESHOLD, 1 - image_N3HW, image_N3HW)
