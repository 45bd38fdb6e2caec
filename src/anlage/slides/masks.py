"""Tissue masks once found: what they are, their area, their tissue per rectangle, their bytes.

Frame: mask pixels, (0, 0) the slide's upper left corner, x to the right, y down.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from anlage.geometry import Size, area_mm2, level0_px

EDGE_DECIMALS = 6  # mask pixels
ROUNDING_PX = 1e-6  # an extent this little above a whole number of pixels is that number
MAX_MASK_PX = 64_000_000  # the largest glass there is (50 x 76 mm) at 8 µm has 59 million


@dataclass(frozen=True, slots=True)
class TissueMask:
    """Where a slide holds tissue.

    Attributes:
        mask: (H, W) bool, True on tissue. It covers the whole slide: H and W are the slide's
            extent over ``mpp`` rounded up, so its last row and column may reach over the edge.
        mpp: Resolution of the mask, micrometres per pixel, exactly.
    """

    mask: NDArray[np.bool_]
    mpp: float


def mask_shape(slide_size: Size, *, slide_mpp: float, mask_mpp: float) -> tuple[int, int]:
    """Height and width of a mask or an overview: the slide's extent in its pixels, rounded up.

    Args:
        slide_size: Of level 0, pixels.
        slide_mpp: Resolution of level 0, micrometres per pixel.
        mask_mpp: Resolution of the mask, micrometres per pixel.
    """
    width, height = (
        max(1, ceil(level0_px(px, mpp=slide_mpp, slide_mpp=mask_mpp) - ROUNDING_PX))
        for px in slide_size
    )
    return height, width


def bounded_mask_mpp(slide_size: Size, *, slide_mpp: float, mask_mpp: float) -> float:
    """The resolution a mask gets: the wanted one unless that is too fine for the slide or memory.

    Never finer than the slide, and never so fine that the mask, and the picture it is made from,
    would have more than ``MAX_MASK_PX`` pixels.

    Args:
        slide_size: Of level 0, pixels.
        slide_mpp: Resolution of level 0, micrometres per pixel.
        mask_mpp: Wanted resolution, micrometres per pixel.
    """
    bounded = max(mask_mpp, slide_mpp)
    while True:
        height, width = mask_shape(slide_size, slide_mpp=slide_mpp, mask_mpp=bounded)
        if height * width <= MAX_MASK_PX:
            return bounded
        bounded *= max(1.001, (height * width / MAX_MASK_PX) ** 0.5)


def tissue_area_mm2(tissue: TissueMask) -> float:
    """Area of the tissue in square millimetres."""
    return area_mm2(int(np.count_nonzero(tissue.mask)), mpp=tissue.mpp)


class SummedArea:
    """Tissue fraction of any rectangle of a mask, in constant time.

    Holds a summed-area table: entry (y, x) counts the tissue above and to the left of it.

    Attributes:
        table: (H + 1, W + 1) int32.
    """

    def __init__(self, mask: NDArray[np.bool_]) -> None:
        if mask.ndim != 2 or mask.dtype != np.bool_:
            msg = f"SummedArea needs a 2-D bool mask; got {mask.dtype} of shape {mask.shape}."
            raise ValueError(msg)
        self.table = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), dtype=np.int32)
        np.cumsum(mask, axis=0, dtype=np.int32, out=self.table[1:, 1:])
        np.cumsum(self.table[1:, 1:], axis=1, out=self.table[1:, 1:])

    def fraction(
        self, left: ArrayLike, top: ArrayLike, right: ArrayLike, bottom: ArrayLike
    ) -> NDArray[np.float64]:
        """Share of each rectangle that is tissue; what lies outside the mask is none.

        Edges are rounded to the nearest mask pixel (halves to even, to within a millionth, which
        is what dividing resolutions costs), so that a rectangle's share is exact for the rounded
        one.

        Args:
            left: First column, mask pixels, any shape that broadcasts with the others.
            top: First row, mask pixels.
            right: Column after the last, mask pixels.
            bottom: Row after the last, mask pixels.

        Returns:
            float64 in [0, 1], of the broadcast shape.

        Raises:
            ValueError: If a rounded rectangle holds no pixel.
        """
        edges = (np.round(np.asarray(e, float), EDGE_DECIMALS) for e in (left, top, right, bottom))
        x0, y0, x1, y1 = (np.rint(edge) for edge in edges)
        n_pixels = (x1 - x0) * (y1 - y0)
        if np.any(x1 <= x0) or np.any(y1 <= y0):
            narrowest = min(np.min(x1 - x0), np.min(y1 - y0))
            msg = (
                "SummedArea.fraction needs rectangles of at least one mask pixel; got a side of "
                f"{narrowest:g}. Compute the mask at a finer mpp."
            )
            raise ValueError(msg)
        height, width = self.table.shape
        x0, x1 = (np.clip(x, 0, width - 1).astype(np.intp) for x in (x0, x1))
        y0, y1 = (np.clip(y, 0, height - 1).astype(np.intp) for y in (y0, y1))
        above = self.table[y0, x1].astype(np.int64) - self.table[y0, x0]
        n_tissue = self.table[y1, x1].astype(np.int64) - self.table[y1, x0] - above
        return np.asarray(n_tissue / n_pixels, dtype=np.float64)


def encode_mask(mask: NDArray[np.bool_]) -> bytes:
    """A mask as the bytes of a 1-bit PNG.

    Raises:
        ValueError: If it is not a 2-D bool array with at least one pixel.
    """
    if mask.ndim != 2 or mask.dtype != np.bool_ or mask.size == 0:
        msg = f"encode_mask needs a 2-D bool mask; got {mask.dtype} of shape {mask.shape}."
        raise ValueError(msg)
    one_bit = [cv2.IMWRITE_PNG_BILEVEL, 1, cv2.IMWRITE_PNG_COMPRESSION, 9]
    _, encoded = cv2.imencode(".png", mask.astype(np.uint8) * 255, one_bit)
    return encoded.tobytes()


def decode_mask(png: bytes) -> NDArray[np.bool_]:
    """A mask from the bytes that ``encode_mask`` gave.

    Raises:
        ValueError: If the bytes are no picture.
    """
    buffer = np.frombuffer(png, dtype=np.uint8)
    pixels = cv2.imdecode(buffer, cv2.IMREAD_GRAYSCALE) if buffer.size else None
    if pixels is None:
        msg = f"decode_mask needs the bytes of a PNG; got {len(png)} bytes that are not."
        raise ValueError(msg)
    return np.asarray(pixels > 0)
