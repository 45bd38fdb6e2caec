"""The square of tissue that is explained: a picture, or a place of a slide."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from anlage.errors import ResolutionError, SlideError
from anlage.geometry import level0_px
from anlage.slides.colour import Colour
from anlage.slides.levels import TileWindow
from anlage.slides.reader import SlideReader, open_slide
from anlage.slides.regions import read_tiles

LOGGER = logging.getLogger(__name__)
LARGEST_PICTURE_PX = 8192


@dataclass(frozen=True, kw_only=True, eq=False)
class Field:
    """A square of pixels with its resolution.

    Attributes:
        name: Of the file, and the place in it.
        pixels: (E, E, 3) uint8 RGB.
        mpp: Resolution of ``pixels``, micrometres per pixel.
        is_stated: Whether file or user told ``mpp``, and the encoder's was not assumed.
    """

    name: str
    pixels: NDArray[np.uint8]
    mpp: float
    is_stated: bool

    @property
    def edge_um(self) -> float:
        """Its edge in micrometres."""
        return len(self.pixels) * self.mpp

    def at_size(self, px: int) -> NDArray[np.uint8]:
        """The whole field at another size: (px, px, 3) uint8, by area or enlarged bicubically."""
        edge = len(self.pixels)
        if px == edge:
            return self.pixels
        how = cv2.INTER_AREA if px < edge else cv2.INTER_CUBIC
        return np.asarray(cv2.resize(self.pixels, (px, px), interpolation=how), np.uint8)


def read_field(
    image: str | Path,
    *,
    size_px: int,
    encoder_mpp: float,
    at: tuple[int, int] | None = None,
    mpp: float | None = None,
    colour: Colour = "stored",
) -> Field:
    """Read the square that is explained.

    Args:
        image: A picture, of which the largest square around its centre is taken; or with ``at`` a
            slide, local or remote.
        size_px: Edge of the field read from a slide, pixels at its resolution.
        encoder_mpp: Resolution the encoder was made for, micrometres per pixel.
        at: (x, y) of the field's corner in the slide, level-0 pixels.
        mpp: Of a slide, what the field is read at, the encoder's if None. Of a picture, what its
            pixels are; what its file says if None, else taken for the encoder's.
        colour: The encoder's: ``srgb`` brings a slide's pixels there by its own profile.

    Returns:
        The field.

    Raises:
        SlideError: If the file cannot be read, is too large to be a picture, or the place is
            outside the slide.
        ResolutionError: If the slide does not tell its resolution or is too coarse.
    """
    if at is not None:
        with open_slide(image) as slide:
            window = TileWindow(*at, size_px, mpp or encoder_mpp)
            return _of_slide(slide, window, colour=colour)
    with open_slide(image, mpp=mpp) as picture:
        return _of_picture(picture, encoder_mpp)


def _of_slide(slide: SlideReader, window: TileWindow, *, colour: Colour) -> Field:
    x, y, size_px, mpp = window.x, window.y, window.size_px, window.mpp
    width, height = slide.size.width, slide.size.height
    if not (0 <= x < width and 0 <= y < height):
        msg = f"has {width} x {height} px; the place {x},{y} is outside. Name one inside it."
        raise SlideError(slide.path, msg)
    edge = level0_px(size_px, mpp=mpp, slide_mpp=slide.mpp)
    if x + edge > width or y + edge > height:
        LOGGER.warning("%s: the field goes beyond the slide, where it is white", slide.path)
    (pixels,) = read_tiles(slide, [window], colour=colour)
    if isinstance(pixels, SlideError):
        raise pixels
    name = f"{Path(slide.path).name} at {x},{y}"
    return Field(name=name, pixels=pixels, mpp=mpp, is_stated=True)


def _of_picture(picture: SlideReader, encoder_mpp: float) -> Field:
    width, height = picture.size.width, picture.size.height
    if max(width, height) > LARGEST_PICTURE_PX:
        msg = (
            f"has {width} x {height} px, too many for a picture to look at whole. Name a place in "
            "it with --at X,Y (level-0 pixels)."
        )
        raise SlideError(picture.path, msg)
    edge = min(width, height)
    left, top = (width - edge) // 2, (height - edge) // 2
    pixels = picture.read_region(left, top, edge, edge)
    try:
        mpp, is_stated = picture.mpp, True
    except ResolutionError:
        mpp, is_stated = encoder_mpp, False
    return Field(name=Path(picture.path).name, pixels=pixels, mpp=mpp, is_stated=is_stated)
