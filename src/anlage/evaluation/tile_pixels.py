"""A tile file as the pixels an encoder takes: decoded, brought to its mpp, cut to its size."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anlage.errors import LabelledDataError

EIGHT_BIT_MODES = frozenset({"RGB", "RGBA", "L", "LA", "P", "PA", "1", "CMYK", "YCbCr"})

Preparation = Literal["cropped at mpp", "resized"]


def read_tile_file(path: str | Path) -> NDArray[np.uint8]:
    """Decode an 8-bit image to (H, W, 3) uint8 RGB; what is transparent becomes white.

    Raises:
        LabelledDataError: If the file is damaged, no image, or not of 8 bits a channel.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in EIGHT_BIT_MODES:
                message = f"needs 8 bits a channel; got mode {image.mode}. Save it as 8-bit RGB."
                raise LabelledDataError(path, message)
            if not image.has_transparency_data:
                return np.array(image.convert("RGB"))
            white = Image.new("RGBA", image.size, "white")
            return np.array(Image.alpha_composite(white, image.convert("RGBA")).convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        message = f"cannot be decoded: {error}. Replace the file, or drop its row."
        raise LabelledDataError(path, message) from error


def fit_tile(
    pixels: NDArray[np.uint8], *, tile_px: int, shrink: float | None
) -> tuple[NDArray[np.uint8], Preparation]:
    """Bring a tile to the size, and where possible to the mpp, an encoder was made for.

    With a known ratio of resolutions the tile is resampled by exactly that ratio and its centre
    is cut out. A tile too small for that, or of unknown mpp, has its shorter side resized to
    ``tile_px`` instead, at whatever mpp that gives, and its centre is cut out.

    Args:
        pixels: (H, W, 3) uint8.
        tile_px: Edge of the result.
        shrink: The encoder's mpp over the tile's mpp; None where the tile's is not known.

    Returns:
        (tile_px, tile_px, 3) uint8, and which of the two was done.

    Source: the second is ResizeAndCrop of eva (kaiko), with area resampling when it shrinks.
    """
    if shrink is not None and round(min(pixels.shape[:2]) / shrink) >= tile_px:
        return _centre(_resampled(pixels, shrink), tile_px), "cropped at mpp"
    height, width = pixels.shape[:2]
    if min(height, width) != tile_px:
        scale = tile_px / min(height, width)
        size_px = (max(tile_px, round(width * scale)), max(tile_px, round(height * scale)))
        pixels = _uint8(cv2.resize(pixels, size_px, interpolation=_interpolation(1 / scale)))
    return _centre(pixels, tile_px), "resized"


def _resampled(pixels: NDArray[np.uint8], shrink: float) -> NDArray[np.uint8]:
    """Resample by an exact, perhaps fractional ratio (a given size would round the ratio)."""
    if shrink == 1:
        return pixels
    how = _interpolation(shrink)
    return _uint8(cv2.resize(pixels, None, fx=1 / shrink, fy=1 / shrink, interpolation=how))


def _interpolation(shrink: float) -> int:
    return cv2.INTER_AREA if shrink > 1 else cv2.INTER_CUBIC


def _centre(pixels: NDArray[np.uint8], tile_px: int) -> NDArray[np.uint8]:
    top, left = ((extent - tile_px) // 2 for extent in pixels.shape[:2])
    return np.ascontiguousarray(pixels[top : top + tile_px, left : left + tile_px])


def _uint8(pixels: object) -> NDArray[np.uint8]:
    return np.asarray(pixels, dtype=np.uint8)
