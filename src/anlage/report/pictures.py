"""Pictures inside a page: data URIs, and SVG paths over a slide in level-0 pixels."""

from __future__ import annotations

import base64
from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

JPEG_QUALITY = 82
OUTLINE_TOLERANCE = 0.8  # mask pixels a simplified outline may be off by


def jpeg_uri(pixels: NDArray[np.uint8], *, quality: int = JPEG_QUALITY) -> str:
    """RGB pixels, (H, W, 3) uint8, as the data URI of a JPEG."""
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    return _uri("jpeg", cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), settings)[1])


def png_uri(pixels: NDArray[np.uint8]) -> str:
    """RGBA pixels, (H, W, 4) uint8, as the data URI of a PNG."""
    bgra = cv2.cvtColor(pixels, cv2.COLOR_RGBA2BGRA)
    return _uri("png", cv2.imencode(".png", bgra, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1])


def outline_path(mask: NDArray[np.bool_], *, per_mask_px: float) -> str:
    """The mask's outline, holes included, as an SVG path in level-0 pixels.

    Args:
        mask: (H, W) bool.
        per_mask_px: Level-0 pixels per mask pixel.
    """
    doubled = cv2.resize(mask.astype(np.uint8), None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    parts = []
    for contour in contours:
        corners = cv2.approxPolyDP(contour, 2 * OUTLINE_TOLERANCE, closed=True).reshape(-1, 2)
        if len(corners) < 3:
            continue
        points = np.rint((corners + 0.5) / 2 * per_mask_px).astype(int).tolist()
        parts.append("M" + "L".join(f"{x} {y}" for x, y in points) + "Z")
    return "".join(parts)


def squares_path(corners: Iterable[tuple[int, int, float]]) -> str:
    """Squares (x, y, edge), level-0 pixels, as one SVG path."""
    return "".join(f"M{x} {y}h{e:.0f}v{e:.0f}h-{e:.0f}z" for x, y, e in corners)


def _uri(kind: str, encoded: NDArray[np.uint8]) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(encoded.tobytes()).decode()}"
