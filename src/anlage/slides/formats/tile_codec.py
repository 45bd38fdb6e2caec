"""bytes tiles of a TIFF in, RGB pixels out: JPEG, also at 1/2 to 1/8 of its size, and others.

JPEG 2000, WebP, JPEG XL, Deflate, LZW and no compression are decoded at full size only.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import cv2
import imagecodecs
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from anlage.geometry import Size

Shape = tuple[int, int, int]  # height, width, 3

START_OF_IMAGE = b"\xff\xd8"
START_OF_CODESTREAM, END_OF_CODESTREAM = b"\xff\x4f\xff\x51", b"\xff\xd9"
NO_FRAME = (0xC4, 0xC8, 0xCC)  # the markers among those of frames that begin something else
FRAME_WITHIN = 1024  # bytes, in which nearly every JPEG has its frame header
DCT_SCALES = (1, 2, 4, 8)
DCT_BLOCK_PX = 8
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
        kind: "jpeg", or a key of ``DECODERS``.
        jpeg_head: For JPEG: what stands in front of each tile's own segments, from the start of
            the image on (tables that the tiles share, the RGB mark); empty if they stand alone.
        is_differenced: For Deflate and LZW: rows are stored as differences (TIFF predictor 2).
    """

    kind: str
    jpeg_head: bytes = b""
    is_differenced: bool = False

    def reductions(self, tile: Size) -> tuple[int, ...]:
        """Factors by which the decoder itself can reduce such tiles, smallest first.

        JPEG keeps blocks of 8 x 8 pixels as frequencies, of which the decoder can transform the
        lowest 4 x 4, 2 x 2 or 1 alone. Tiles must stay whole pixels, or they would not meet.
        """
        if self.kind != "jpeg":
            return (1,)
        return tuple(
            n for n in DCT_SCALES if all(px % n == 0 and px >= n * DCT_BLOCK_PX for px in tile)
        )

    def decode(
        self,
        data: bytes,
        *,
        height: int,
        width: int,
        reduce: int = 1,
        buffer: NDArray[np.uint8] | None = None,
    ) -> NDArray[np.uint8]:
        """Pixels of one tile, uint8 RGB.

        Args:
            data: The tile as it stands in the file.
            height: Of the tile as it is stored, pixels.
            width: Of the tile as it is stored, pixels.
            reduce: One of ``reductions``.
            buffer: (N,) room that a JPEG may be decoded into, N >= height * width * 3 of the
                result: the result then is a view of it, good until it is used again.

        Returns:
            (ceil(height / reduce), ceil(width / reduce), 3) uint8.

        Raises:
            DecodeError: If the bytes are damaged, or hold a picture of another size.
        """
        shape = (-(-height // reduce), -(-width // reduce), 3)
        try:
            if self.kind == "jpeg":
                pixels = _jpeg(self, data, (height, width, 3), shape=shape, buffer=buffer)
            else:
                pixels = DECODERS[self.kind](self, data, shape)
        except (ValueError, RuntimeError, MemoryError) as error:  # memory: of a damaged size
            msg = f"{self.kind} decoder: {error}"
            raise DecodeError(msg) from error
        if pixels.shape != shape or pixels.dtype != np.uint8:
            msg = f"holds {pixels.shape} {pixels.dtype}; needs {shape} uint8"
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


def _jpeg(
    codec: TileCodec,
    data: bytes,
    stored: Shape,
    *,
    shape: Shape,
    buffer: NDArray[np.uint8] | None,
) -> NDArray[np.uint8]:
    if not data.startswith(START_OF_IMAGE):
        msg = "no JPEG starts here"
        raise DecodeError(msg)
    # The size of the result would not do: a scale is chosen to fit the size that is asked for.
    if data.find(_frame_header(stored), 2, FRAME_WITHIN) < 0:
        _refuse_other_frame(data, stored)
    if codec.jpeg_head:
        data = codec.jpeg_head + memoryview(data)[2:]
    if shape == stored:
        return np.asarray(simplejpeg.decode_jpeg(data, "RGB", buffer=buffer, strict=True))
    # simplejpeg takes the smallest scale that still gives this many rows and columns. Without
    # them it decodes at full size whatever its ``min_factor``, which only refuses scales.
    height, width = shape[:2]
    return np.asarray(
        simplejpeg.decode_jpeg(
            data, "RGB", min_height=height, min_width=width, buffer=buffer, strict=True
        )
    )


@lru_cache
def _frame_header(stored: Shape) -> bytes:
    """What a JPEG's frame header says of three 8-bit components of this size, from its length."""
    return struct.pack(">HBHHB", 17, 8, *stored)


def _refuse_other_frame(data: bytes, stored: Shape) -> None:
    """Find the frame header the long way, marker by marker, and refuse what else it says."""
    at, end = 2, len(data) - 9
    while at < end and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in NO_FRAME:
            height, width, n_components = struct.unpack(">HHB", data[at + 5 : at + 10])
            if (height, width, n_components) == stored:
                return
            msg = f"holds {width} x {height} pixels of {n_components} components; "
            raise DecodeError(msg + "needs {1} x {0} of {2}".format(*stored))
        at += 2 + (data[at + 2] << 8 | data[at + 3]) if marker != 0xFF else 1  # 0xFF: filling
    msg = "the JPEG has no frame header"
    raise DecodeError(msg)


def _jpeg2000(codec: TileCodec, data: bytes, shape: Shape) -> NDArray[np.uint8]:
    if not bytes(data[-64:]).rstrip(b"\0").endswith(END_OF_CODESTREAM):
        msg = "the codestream does not end"  # OpenJPEG would fill what is missing
        raise DecodeError(msg)
    if data.startswith(START_OF_CODESTREAM) and len(data) >= 24:
        right, bottom, left, top = struct.unpack(">4I", data[8:24])
        if (bottom - top, right - left) != shape[:2]:  # before memory is taken for as much
            msg = f"holds {right - left} x {bottom - top} pixels; needs {shape[1]} x {shape[0]}"
            raise DecodeError(msg)
    return np.asarray(imagecodecs.jpeg2k_decode(data, numthreads=1))


def _jpeg2000_ycbcr(codec: TileCodec, data: bytes, shape: Shape) -> NDArray[np.uint8]:
    pixels = _jpeg2000(codec, data, shape)
    if pixels.shape != shape or pixels.dtype != np.uint8:
        msg = f"holds {pixels.shape} {pixels.dtype}; needs {shape} uint8"
        raise DecodeError(msg)
    return np.asarray(cv2.cvtColor(pixels[..., [0, 2, 1]], cv2.COLOR_YCrCb2RGB))


def _jpegls(codec: TileCodec, data: bytes, shape: Shape) -> NDArray[np.uint8]:
    pixels = np.empty(shape, np.uint8)  # a size that was damaged takes no more than this
    return np.asarray(imagecodecs.jpegls_decode(data, out=pixels))  # DICOM's; a TIFF has none


def _webp(codec: TileCodec, data: bytes, shape: Shape) -> NDArray[np.uint8]:
    return _opaque(np.asarray(imagecodecs.webp_decode(data)))


def _jpegxl(codec: TileCodec, data: bytes, shape: Shape) -> NDArray[np.uint8]:
    return _opaque(np.asarray(imagecodecs.jpegxl_decode(data, numthreads=1)))


def _opaque(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """As it is, without an alpha channel, which a TIFF of three samples does not have."""
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        msg = "has an alpha channel, where the file says RGB"
        raise DecodeError(msg)
    return pixels


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
    "jpeg2000": _jpeg2000,
    "jpeg2000-ycbcr": _jpeg2000_ycbcr,
    "jpegls": _jpegls,
    "webp": _webp,
    "jpegxl": _jpegxl,
    "deflate": _deflate,
    "lzw": _lzw,
    "none": _none,
}
