"""Pages of a TIFF, as tifffile parsed them, as grids of encoded tiles; what is not RGB is refused.

The one rule: a slide's pixels are three interleaved samples of 8 bits that mean red, green and
blue. Grey, palettes, alpha, CMYK, 16 bits, floating point, and stacks in depth, time or channels
are refused by name, for every reader: OpenSlide would squeeze some of them into RGB, and nobody
would know that the model was trained on a fluorescence channel, or on one plane of many.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from anlage.errors import SlideError
from anlage.geometry import Size
from anlage.slides.formats.tile_codec import TileCodec, jpeg_head
from anlage.slides.formats.tiled_picture import TiledPicture
from anlage.slides.reader import UnknownFormatError

MAX_TILE_PX = 2**25  # one strip as high as a slide would be decoded whole for every read
RGB, YCBCR = 2, 6
APERIO_YCBCR = 33003  # JPEG 2000 that holds YCbCr and does not say so
CODECS = {1: "none", 5: "lzw", 7: "jpeg", 8: "deflate", 32946: "deflate"}
CODECS |= {APERIO_YCBCR: "jpeg2000-ycbcr", 33005: "jpeg2000", 34712: "jpeg2000"}
CODECS |= {50001: "webp", 50002: "jpegxl"}


def refuse_giant_tiles(path: str, tiff: Any) -> None:  # noqa: ANN401 - tifffile is untyped here
    """Refuse a file for every reader if decoding one tile of any page would take all memory."""
    for i, page in enumerate(tiff.pages):
        height, width = (page.tilelength, page.tilewidth) if page.is_tiled else (0, 0)
        if height * width > MAX_TILE_PX:
            raise SlideError(
                path,
                f"needs tiles of at most {MAX_TILE_PX} pixels; page {i} has {width} x {height}. "
                "It is damaged, or must be tiled anew.",
            )


def only_page(path: str, tiff: Any, level: Any) -> Any:  # noqa: ANN401
    """The one page of a level: not a stack in depth, time or channels, and in this very file.

    Args:
        path: Named in the errors.
        tiff: The file, open in tifffile.
        level: A series of tifffile's, or a level of one.

    Raises:
        SlideError: If it is anything else.
    """
    page = level.pages[0]
    colour = "" if page is None else f"{_name(page.aspage().photometric)} "
    what = f"{colour}{level.dtype} of shape {tuple(level.shape)}, axes {level.axes}"
    if level.dtype != np.uint8 or sorted(level.axes) != ["S", "X", "Y"] or 3 not in level.shape:
        raise SlideError(path, f"needs 8-bit RGB; got {what}. Convert it to 8-bit RGB.")
    if page is None or page.parent.filehandle.path != tiff.filehandle.path:
        raise SlideError(path, "is spread over several files. Export it as one file.")
    return page.aspage()


def picture_of(path: str, page: Any, name: str) -> TiledPicture:  # noqa: ANN401
    """A page as a grid of tiles, or of strips.

    Args:
        path: Named in the errors.
        page: A page of tifffile's.
        name: What the picture is called.

    Raises:
        UnknownFormatError: If it is RGB in an encoding that OpenSlide may know.
        SlideError: If it is not 8-bit RGB, damaged, or its tiles are too large.
    """
    _refuse_unless_rgb(path, page, name)
    kind = CODECS[int(page.compression)]
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
    is_rgb = int(page.photometric) == RGB
    head = jpeg_head(page.jpegtables, is_rgb=is_rgb) if kind == "jpeg" else b""
    return TiledPicture(
        name=name,
        size=Size(width, height),
        tile=tile,
        offsets=np.array(page.dataoffsets, np.int64),
        counts=np.array(page.databytecounts, np.int64),
        codec=TileCodec(kind, jpeg_head=head, is_differenced=page.predictor == 2),
        is_stripped=not page.is_tiled,
    )


def _refuse_unless_rgb(path: str, page: Any, name: str) -> None:  # noqa: ANN401
    kind, photometric = CODECS.get(int(page.compression)), int(page.photometric)
    what = (
        f"{name} is {page.dtype} {_name(page.photometric)} of {page.samplesperpixel} samples in "
        f"{_name(page.compression)}, {_name(page.planarconfig)} planes, predictor "
        f"{_name(page.predictor)}"
    )
    if photometric not in {RGB, YCBCR} or page.samplesperpixel != 3 or page.dtype != np.uint8:
        raise SlideError(path, f"needs 8-bit RGB; {what}. Convert it to 8-bit RGB.")
    is_rgb = photometric == RGB or kind in {"jpeg", "jpeg2000-ycbcr"}
    is_plain = page.predictor in {1, 2} and page.planarconfig == 1 and page.fillorder == 1
    if kind is None or not is_rgb or not is_plain:
        raise UnknownFormatError(
            path,
            "needs interleaved RGB in JPEG, JPEG 2000, WebP, JPEG XL, Deflate, LZW or no "
            f"compression; {what}.",
        )


def _strip(page: Any) -> Size:  # noqa: ANN401
    height, width = page.shape[:2]
    return Size(width, min(page.rowsperstrip, height))


def _name(tag: Any) -> str:  # noqa: ANN401 - an enum of tifffile, or a number it does not know
    return str(getattr(tag, "name", tag))
