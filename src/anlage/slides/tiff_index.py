"""The index of a TIFF, parsed once: which pictures it holds and where their tiles lie."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import tifffile

from anlage.errors import SlideError
from anlage.geometry import Size
from anlage.slides.byte_source import ByteSource
from anlage.slides.reader import UnknownFormatError
from anlage.slides.resolution import Stated
from anlage.slides.tiff_metadata import stated_by, vendor_of
from anlage.slides.tile_codec import TileCodec, jpeg_head
from anlage.slides.tiled_picture import TiledPicture

LEFT_TO_OPENSLIDE = ("ndpi", "scn", "bif", "philips", "avs")  # pixels need more than their tiles
MAX_TILE_PX = 2**25  # one strip as high as a slide would be decoded whole for every read
RGB, YCBCR = 2, 6
JPEG = 7
CODECS = {1: "none", 5: "lzw", JPEG: "jpeg", 8: "deflate", 32946: "deflate"}
CODECS |= {50001: "webp", 50002: "jpegxl"}
CODECS |= {33005: "jpeg2000", 34712: "jpeg2000"}  # Aperio's RGB variant, and the standard's


@dataclass(frozen=True)
class TiffIndex:
    """What our reader needs to know of a TIFF slide.

    Attributes:
        levels: The pyramid, finest first.
        associated: The pictures beside it by name; without those that are not 8-bit RGB.
        vendor: "aperio", "ome" or "generic-tiff".
        stated: What it says about its resolution.
        icc_profile: As it stands in the file.
    """

    levels: tuple[TiledPicture, ...]
    associated: dict[str, TiledPicture]
    vendor: str
    stated: Stated
    icc_profile: bytes | None


def read_tiff_index(source: ByteSource) -> TiffIndex:
    """Parse a TIFF's index; no pixel is read.

    A damaged index is refused for every reader: OpenSlide ends the whole process when it is
    asked for more memory than there is, which one wrong byte in a tile's size will do.

    Raises:
        UnknownFormatError: If it is none that we read; it says what it is.
        SlideError: If its index is damaged, or its pixels are not 8-bit colour.
    """
    path = source.path
    try:
        with source.as_file() as file, tifffile.TiffFile(file) as tiff:
            return _indexed(path, tiff)
    except SlideError:
        raise
    except Exception as error:  # a damaged index makes tifffile fail in any way
        reason = f"its TIFF index is damaged ({type(error).__name__}: {error})."
        raise SlideError(path, reason) from error


def _indexed(path: str, tiff: Any) -> TiffIndex:  # noqa: ANN401 - tifffile is untyped here
    first = tiff.pages.first
    _refuse_giant_tiles(path, tiff)
    for name in LEFT_TO_OPENSLIDE:
        if getattr(tiff, f"is_{name}"):
            raise UnknownFormatError(path, f"{name} files are left to OpenSlide.")
    if str(first.software).startswith("MedScan"):
        raise UnknownFormatError(path, "Trestle files are left to OpenSlide.")
    main = max(tiff.series, key=lambda series: math.prod(series.shape))
    pages = [_only_page(path, tiff, level) for level in main.levels]
    pages.sort(key=lambda page: -page.imagewidth)
    levels = [_picture(path, page, f"level {i}") for i, page in enumerate(pages)]
    if first.is_svs and any((level.counts == 0).any() for level in levels):
        raise UnknownFormatError(
            path, "an Aperio file without some of its tiles: left to OpenSlide."
        )
    return TiffIndex(
        levels=tuple(levels),
        associated=_associated(path, tiff, main),
        vendor=vendor_of(first),
        stated=stated_by(pages[0]),
        icc_profile=_bytes(pages[0].iccprofile),
    )


def _refuse_giant_tiles(path: str, tiff: Any) -> None:  # noqa: ANN401
    for i, page in enumerate(tiff.pages):
        height, width = (page.tilelength, page.tilewidth) if page.is_tiled else (0, 0)
        if height * width > MAX_TILE_PX:
            raise SlideError(
                path,
                f"needs tiles of at most {MAX_TILE_PX} pixels; page {i} has {width} x {height}. "
                "It is damaged, or must be tiled anew.",
            )


def _only_page(path: str, tiff: Any, level: Any) -> Any:  # noqa: ANN401
    """The one page of a level: not a stack in depth, time or channels, and in this very file."""
    what = f"{level.dtype} of shape {tuple(level.shape)}, axes {level.axes}"
    if level.dtype != np.uint8 or "S" not in level.axes:
        # OpenSlide would read some of these, by squeezing them into 8 bits or making grey RGB.
        raise SlideError(path, f"needs 8-bit RGB; got {what}. Convert it to 8-bit RGB.")
    if level.axes != "YXS" or len(level.pages) != 1 or level.shape[2] != 3:
        raise UnknownFormatError(path, f"needs one 8-bit RGB picture; got {what}.")
    page = level.pages[0]
    if page is None or page.parent.filehandle.path != tiff.filehandle.path:
        raise UnknownFormatError(path, "is spread over several files, which we do not read.")
    return page.aspage()


def _picture(path: str, page: Any, name: str) -> TiledPicture:  # noqa: ANN401
    kind = CODECS.get(int(page.compression))
    photometric = int(page.photometric)
    is_rgb = photometric == RGB or (photometric == YCBCR and kind == "jpeg")
    is_plain = page.predictor in {1, 2} and page.planarconfig == 1 and page.fillorder == 1
    if kind is None or not is_rgb or not is_plain or page.dtype != np.uint8:
        raise UnknownFormatError(
            path,
            f"needs 8-bit RGB in JPEG, JPEG 2000, Deflate, LZW or no compression; {name} is "
            f"{page.dtype} {_name(page.photometric)} in {_name(page.compression)}, "
            f"{_name(page.planarconfig)} planes, predictor {_name(page.predictor)}.",
        )
    height, width = page.shape[:2]
    tile = Size(page.tilewidth, page.tilelength) if page.is_tiled else _strip(page)
    if min(width, height, *tile) < 1:
        raise SlideError(path, f"is damaged: {name} of {width} x {height} in tiles {tuple(tile)}.")
    if tile.width * tile.height > MAX_TILE_PX:
        raise SlideError(
            path,
            f"needs strips of at most {MAX_TILE_PX} pixels, since each is decoded whole; {name} "
            f"has {tile.width} x {tile.height}. Convert it to a tiled TIFF.",
        )
    head = jpeg_head(page.jpegtables, is_rgb=photometric == RGB) if kind == "jpeg" else b""
    return TiledPicture(
        name=name,
        size=Size(width, height),
        tile=tile,
        offsets=np.array(page.dataoffsets, np.int64),
        counts=np.array(page.databytecounts, np.int64),
        codec=TileCodec(kind, jpeg_head=head, is_differenced=page.predictor == 2),
        is_stripped=not page.is_tiled,
    )


def _name(tag: Any) -> str:  # noqa: ANN401 - an enum of tifffile, or a number it does not know
    return str(getattr(tag, "name", tag))


def _strip(page: Any) -> Size:  # noqa: ANN401
    height, width = page.shape[:2]
    return Size(width, min(page.rowsperstrip, height))


def _associated(path: str, tiff: Any, main: Any) -> dict[str, TiledPicture]:  # noqa: ANN401
    """The named pictures beside the pyramid that are 8-bit RGB as well."""
    found = {}
    for series in tiff.series:
        name = series.name.lower()
        if series is main or not name:
            continue
        try:
            found[name] = _picture(path, _only_page(path, tiff, series), name)
        except SlideError:
            continue
    return dict(sorted(found.items()))


def _bytes(value: object) -> bytes | None:
    return bytes(value) if isinstance(value, bytes | bytearray | np.ndarray) else None
