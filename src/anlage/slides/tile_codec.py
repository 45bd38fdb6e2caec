"""Encoded tiles of a TIFF in, RGB pixels out: JPEG, JPEG 2000, Deflate, LZW, none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import imagecodecs
import numpy as np
import simplejpeg
from numpy.typing import NDArray

Shape = tuple[int, int, int]  # height, width, 3

START_OF_IMAGE = b"\xff\xd8"
END_OF_CODESTREAM = b"\xff\xd9"
# Adobe APP14 segment with transform 0: "these three components are RGB", which a TIFF says in
# its photometric tag, where a JPEG decoder cannot see it. A JFIF header in the tile overrules it,
# as in the OME-TIFFs of Bio-Formats, which say RGB and hold YCbCr.
ADOBE_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"


class DecodeError(ValueError):
    """The bytes of a tile are not what its codec needs; the caller knows which tile it was."""


@dataclass(frozen=True)
class TileCodec:
    """How the tiles of one picture are encoded.

    Attributes:
        kind: Key of ``DECODERS``.
        jpeg_head: For JPEG: what stands in front of each tile's own segments, from the start of
            the image on (tables that the tiles share, the RGB mark); empty if they stand alone.
        is_differenced: For Deflate and LZW: rows are stored as differences (TIFF predictor 2).
    """

    kind: str
    jpeg_head: bytes = b""
    is_differenced: bool = False

    def decode(self, data: bytes, *, height: int, width: int) -> NDArray[np.uint8]:
        """Pixels of one tile, (height, width, 3) uint8 RGB.

        Raises:
            DecodeError: If the bytes are damaged, or hold a picture of another size.
        """
        try:
            pixels = DECODERS[self.kind](self, data, (height, width, 3))
        except (ValueError, RuntimeError) as error:
            msg = f"{self.kind} decoder: {error}"
            raise DecodeError(msg) from error
        if pixels.shape != (height, width, 3) or pixels.dtype != np.uint8:
            msg = f"holds {pixels.shape} {pixels.dtype}; needs {(height, width, 3)} uint8"
            raise DecodeError(msg)
        return pixels


def jpeg_head(tables: bytes | None, *, is_rgb: bool) -> bytes:
    """The ``TileCodec.jpeg_head`` of a picture; empty if its tiles stand alone.

    Args:
        tables: The TIFF's JPEGTables: a JPEG of its own without pixels; None without one.
        is_rgb: The TIFF says that the components are RGB.
    """
    if not tables and not is_rgb:
        return b""
    mark = ADOBE_RGB if is_rgb else b""
    return START_OF_IMAGE + mark + (tables[2:-2] if tables else b"")


def _jpeg(codec: TileCodec, data: bytes, shape: Shape) -> NDArray[np.uint8]:
    if not data.startswith(START_OF_IMAGE):
        msg = "no JPEG starts here"
        raise DecodeError(msg)
    if codec.jpeg_head:
        data = codec.jpeg_head + data[2:]
    height, width = simplejpeg.decode_jpeg_header(data)[:2]
    if (height, width) != shape[:2]:
        msg = f"holds {width} x {height} pixels; needs {shape[1]} x {shape[0]}"
        raise DecodeError(msg)
    return np.asarray(simplejpeg.decode_jpeg(data, "RGB", strict=True))


def _jpeg2000(codec: TileCodec, data: bytes, shape: Shape) -> NDArray[np.uint8]:
    if not data.rstrip(b"\0").endswith(END_OF_CODESTREAM):  # OpenJPEG fills what is missing
        msg = "the codestream does not end"
        raise DecodeError(msg)
    return np.asarray(imagecodecs.jpeg2k_decode(data))


def _deflate(codec: TileCodec, data: bytes, shape: Shape) -> NDArray[np.uint8]:
    return _shaped(imagecodecs.zlib_decode(data, out=int(np.prod(shape))), codec, shape)


def _lzw(codec: TileCodec, data: bytes, shape: Shape) -> NDArray[np.uint8]:
    return _shaped(imagecodecs.lzw_decode(data, out=int(np.prod(shape))), codec, shape)


def _none(codec: TileCodec, data: bytes, shape: Shape) -> NDArray[np.uint8]:
    return _shaped(data, codec, shape)


def _shaped(data: bytes | bytearray, codec: TileCodec, shape: Shape) -> NDArray[np.uint8]:
    pixels = np.frombuffer(data, np.uint8).reshape(shape)
    return np.cumsum(pixels, axis=1, dtype=np.uint8) if codec.is_differenced else pixels


DECODERS: Mapping[str, Callable[[TileCodec, bytes, Shape], NDArray[np.uint8]]] = {
    "jpeg": _jpeg,
    "jpeg2000": _jpeg2000,
    "deflate": _deflate,
    "lzw": _lzw,
    "none": _none,
}
