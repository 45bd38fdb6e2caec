"""Plain PNG and JPEG pictures as slides of one level."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from anlage.errors import SlideError
from anlage.geometry import Size
from anlage.slides.reader import SlideReader, UnknownFormatError, levels_of
from anlage.slides.resolution import Stated, find_resolution

MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
MAX_PX = 2**27  # it is held in memory whole: 384 MiB


class ImageReader(SlideReader):
    """A PNG or JPEG, decoded whole when it is opened; transparent parts are white.

    Its resolution is only ever the override: the dots per inch of such files are a printer's.

    Args:
        path: The picture's file.
        mpp: Its resolution, micrometres per pixel.

    Raises:
        UnknownFormatError: If it is neither PNG nor JPEG.
        SlideError: If it is damaged, too large to hold, or not 8-bit colour or grey.
    """

    reader: ClassVar[str] = "image"

    def __init__(self, path: str, *, mpp: float | None = None) -> None:
        self._pixels, vendor, self._icc_profile = _decoded(path)
        height, width = self._pixels.shape[:2]
        super().__init__(
            path,
            vendor=vendor,
            levels=levels_of([Size(width, height)]),
            resolution=find_resolution(path, Stated(), override=mpp),
        )

    @property
    def associated(self) -> tuple[str, ...]:
        """None: such a file holds one picture."""
        return ()

    @property
    def icc_profile(self) -> bytes | None:
        """The ICC profile in the file; None without one."""
        return self._icc_profile

    def read_associated(self, name: str) -> NDArray[np.uint8]:
        """Always refused: such a file holds one picture."""
        self._refuse_if_closed()
        raise self._no_such_associated(name)

    def close(self) -> None:
        """Let go of the pixels."""
        super().close()
        self._pixels = np.empty((0, 0, 3), np.uint8)

    def _read_inside(self, level: int, left: int, top: int, size: Size) -> NDArray[np.uint8]:
        pixels = self._pixels
        self._refuse_if_closed()
        return pixels[top : top + size.height, left : left + size.width].copy()


def _decoded(path: str) -> tuple[NDArray[np.uint8], str, bytes | None]:
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as picture:
            vendor = str(picture.format).lower()
            _refuse_unreadable(path, picture)
            icc_profile = picture.info.get("icc_profile")
            return _rgb(picture), vendor, icc_profile
    except UnidentifiedImageError as error:
        raise UnknownFormatError(path, "neither PNG nor JPEG.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise SlideError(path, f"cannot be decoded: {error}.") from error


def _refuse_unreadable(path: str, picture: Image.Image) -> None:
    if picture.width * picture.height > MAX_PX:
        raise SlideError(
            path,
            f"needs at most {MAX_PX} pixels to be held in memory; got {picture.width} x "
            f"{picture.height}. Convert it to a tiled TIFF.",
        )
    if picture.mode not in MODES:
        raise SlideError(
            path, f"needs 8-bit colour or grey; got Pillow mode {picture.mode}. Convert it to RGB."
        )


def _rgb(picture: Image.Image) -> NDArray[np.uint8]:
    if picture.mode in {"LA", "RGBA"} or "transparency" in picture.info:
        white = Image.new("RGBA", picture.size, "white")
        return np.array(Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB"))
    return np.array(picture.convert("RGB"))
