"""Plain PNG and JPEG pictures as slides of one level; their decoders, which are strict."""

from __future__ import annotations

from typing import BinaryIO, ClassVar

import imagecodecs
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from anlage.errors import SlideError
from anlage.geometry import Size
from anlage.slides.reader import SlideReader, UnknownFormatError, levels_of
from anlage.slides.rectangle import WHITE
from anlage.slides.resolution import Stated, find_resolution
from anlage.slides.storage.byte_source import open_bytes

MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
MAX_PX = 2**27  # it is held in memory whole: 384 MiB
BAND_ROWS = 256
DAMAGES = (OSError, SyntaxError, ValueError, RuntimeError)  # of Pillow and of the decoders
Picture = tuple[NDArray[np.uint8], str, bytes | None]


class ImageReader(SlideReader):
    """A PNG or JPEG, decoded whole when it is opened; transparent parts are white.

    Its resolution is only ever the override: the dots per inch of such files are a printer's.

    Args:
        path: The picture's file, local or remote.
        mpp: Its resolution, micrometres per pixel.

    Raises:
        UnknownFormatError: If it is neither PNG nor JPEG.
        SlideError: If it is damaged, too large to hold, or not 8-bit colour or grey.
    """

    reader: ClassVar[str] = "image"

    def __init__(self, path: str, *, mpp: float | None = None) -> None:
        with open_bytes(path).as_file() as file:
            self._pixels, vendor, self._icc_profile = decode_picture(path, file)
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


def decode_picture(path: str, file: BinaryIO) -> Picture:
    """A whole PNG or JPEG: grey and palettes become RGB, transparent parts white.

    Args:
        path: Named in the errors.
        file: At its start.

    Returns:
        (H, W, 3) uint8 RGB, "png" or "jpeg", and the ICC profile in the file; None without one.

    Raises:
        UnknownFormatError: If it is neither.
        SlideError: If it is damaged, too large to hold, or not 8-bit colour or grey.
    """
    try:
        with Image.open(file, formats=("PNG", "JPEG")) as picture:
            vendor = "png" if picture.format == "PNG" else "jpeg"
            _refuse_unreadable(path, picture)
            icc_profile = picture.info.get("icc_profile")
        file.seek(0)
        return _DECODERS[vendor](file.read()), vendor, icc_profile
    except UnidentifiedImageError as error:
        raise UnknownFormatError(path, "neither PNG nor JPEG.") from error
    except (*DAMAGES, Image.DecompressionBombError) as error:
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


def _png(data: bytes) -> NDArray[np.uint8]:
    pixels = imagecodecs.png_decode(data)
    if pixels.dtype != np.uint8:  # Pillow would have kept half of each sample of a colour PNG
        msg = f"it has samples of {pixels.dtype.itemsize * 8} bits, and 8 are needed"
        raise ValueError(msg)
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    n_colours = pixels.shape[2] - (pixels.shape[2] % 2 == 0)  # grey or RGB, alpha behind it
    colour = np.broadcast_to(pixels[..., :n_colours], (*pixels.shape[:2], 3))
    if n_colours == pixels.shape[2]:
        return np.array(colour)
    return over_white(colour, pixels[..., n_colours:])


def over_white(colour: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture as it looks on white; a band at a time, since the sums take several times its size.

    Args:
        colour: (H, W, 3) uint8 RGB, not multiplied by alpha.
        alpha: (H, W, 1) uint8, 255 where it is opaque.
    """
    shown = np.empty(colour.shape, np.uint8)
    for top in range(0, len(shown), BAND_ROWS):
        band = slice(top, top + BAND_ROWS)
        share = alpha[band].astype(np.uint16)
        shown[band] = (colour[band] * share + WHITE * (255 - share) + 127) // 255
    return shown


def _jpeg(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(simplejpeg.decode_jpeg(data, "RGB", strict=True))


# Not Pillow's: where the bytes are damaged it delivers what it has, and does not say so.
_DECODERS = {"png": _png, "jpeg": _jpeg}
