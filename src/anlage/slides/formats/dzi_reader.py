"""Deep Zoom slides: a description (.dzi) beside a folder of JPEG or PNG tiles, one file each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar
from xml.etree import ElementTree as ET

import numpy as np
from numpy.typing import NDArray

from anlage.errors import SlideError
from anlage.geometry import Size
from anlage.slides.formats.image_reader import decode_picture
from anlage.slides.reader import SlideReader, UnknownFormatError, levels_of
from anlage.slides.resolution import Stated, find_resolution
from anlage.slides.storage.byte_source import open_bytes
from anlage.slides.storage.location import suffix_of

SUFFIX = ".dzi"
MAX_XML_BYTES = 2**16  # a description has a few hundred
MAX_EXTENT_PX = 2**31
MAX_TILE_EDGE_PX = 2**13
NAMESPACES = {f"{{http://schemas.microsoft.com/deepzoom/{year}}}Image" for year in ("2008", "2009")}
FORMATS = ("jpeg", "jpg", "png")


@dataclass(frozen=True)
class _Description:
    """What a .dzi says: the picture's size, and how it is cut.

    Attributes:
        size: Pixels of the finest level.
        tile_px: Edge of a tile without its overlap.
        overlap_px: Pixels that a tile repeats of each neighbour.
        ending: Of the tiles' files: "jpeg", "jpg" or "png".
    """

    size: Size
    tile_px: int
    overlap_px: int
    ending: str


class DeepZoomReader(SlideReader):
    """A Deep Zoom pyramid, read tile by tile from the folder ``<name>_files`` beside the .dzi.

    Each level is half of the one before, rounded up, down to a single pixel; those below the
    first that fits into one tile are no levels here. The format has no place for a resolution:
    it is only ever the override. A tile carries a rim of its neighbours' pixels, which is cut
    off, so what is read of a JPEG is each tile's own decoding of its own pixels, at full size:
    a rim shifts the tile's pixels against its JPEG's blocks, so no reduced ones would fit.

    Args:
        path: The .dzi, local or remote.
        mpp: Resolution of the finest level, micrometres per pixel.

    Raises:
        UnknownFormatError: If its name does not end in .dzi, or it is no Deep Zoom description.
        SlideError: If the description is damaged, or asks for something that is not read.
    """

    reader: ClassVar[str] = "deep-zoom"

    def __init__(self, path: str, *, mpp: float | None = None) -> None:
        if suffix_of(path) != SUFFIX:
            raise UnknownFormatError(path, "not named .dzi.")
        self._described = _describe(path)
        sizes = _sizes(self._described)
        super().__init__(
            path,
            vendor="deep-zoom",
            levels=levels_of(sizes),
            resolution=find_resolution(path, Stated(), override=mpp),
        )
        self._finest = (max(self._described.size) - 1).bit_length()

    @property
    def associated(self) -> tuple[str, ...]:
        """None: the format knows none."""
        return ()

    @property
    def icc_profile(self) -> bytes | None:
        """None: the format knows none."""
        return None

    def native_tile(self, level: int) -> Size | None:
        """The grid in which a level is stored, pixels of the level."""
        return Size(self._described.tile_px, self._described.tile_px)

    def read_associated(self, name: str) -> NDArray[np.uint8]:
        """Always refused: the format knows no such pictures."""
        self._refuse_if_closed()
        raise self._no_such_associated(name)

    def _read_inside(self, level: int, left: int, top: int, size: Size) -> NDArray[np.uint8]:
        edge = self._described.tile_px
        region = np.empty((size.height, size.width, 3), np.uint8)
        right, bottom = left + size.width, top + size.height
        for row in range(top // edge, (bottom - 1) // edge + 1):
            y = row * edge
            y0, y1 = max(top, y), min(bottom, y + edge)
            for column in range(left // edge, (right - 1) // edge + 1):
                x = column * edge
                x0, x1 = max(left, x), min(right, x + edge)
                tile = self._tile(level, row, column)
                part = tile[y0 - y : y1 - y, x0 - x : x1 - x]
                region[y0 - top : y1 - top, x0 - left : x1 - left] = part
        return region

    def _tile(self, level: int, row: int, column: int) -> NDArray[np.uint8]:
        """The pixels of one tile without those it repeats of its neighbours."""
        how, shape = self._described, self.levels[level]
        x0, x1 = _span(column, shape.width, how)
        y0, y1 = _span(row, shape.height, how)
        name = f"{self._finest - level}/{column}_{row}.{how.ending}"
        try:
            with open_bytes(_folder(self.path) + name).as_file() as file:
                pixels, _, _ = decode_picture(name, file)
            pixels = _fitted(name, pixels, Size(x1 - x0, y1 - y0))
        except SlideError as error:
            where = f"level {level}, tile row {row}, column {column} (file {name})"
            raise SlideError(self.path, f"{where} {error.message}") from error
        x, y = column * how.tile_px - x0, row * how.tile_px - y0
        return pixels[y : y + how.tile_px, x : x + how.tile_px]


def _folder(path: str) -> str:
    """Where the tiles are; a URL keeps its query out of it, which is the .dzi's alone."""
    return path[: path.lower().rindex(SUFFIX)] + "_files/"


def _span(index: int, extent: int, how: _Description) -> tuple[int, int]:
    """First pixel of a tile and the one after its last, with its rims, along one axis."""
    start = index * how.tile_px
    return (
        max(start - how.overlap_px, 0),
        min(start + how.tile_px + how.overlap_px, extent),
    )


def _fitted(name: str, pixels: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """A tile at the size it should have.

    OpenSlide's writer of Deep Zoom keeps a tile's proportions when it halves one, which can cost
    the last column or row of a picture; the one before it is then repeated.
    """
    height, width = pixels.shape[:2]
    missing = (size.height - height, size.width - width)
    if not {0, 1}.issuperset(missing):
        rule = f"needs {size.width} x {size.height} pixels"
        raise SlideError(name, f"{rule}; got {width} x {height}. Make the tiles anew.")
    if missing == (0, 0):
        return pixels
    return np.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")


def _sizes(how: _Description) -> list[Size]:
    """Sizes of the levels from the finest to the first that fits into one tile."""
    sizes = [how.size]
    while max(sizes[-1]) > how.tile_px:
        sizes.append(Size(-(-sizes[-1].width // 2), -(-sizes[-1].height // 2)))
    return sizes


def _describe(path: str) -> _Description:
    source = open_bytes(path)
    if source.size > MAX_XML_BYTES:
        raise UnknownFormatError(path, f"a Deep Zoom description of {source.size} bytes.")
    with source.as_file() as file:
        text = file.read()
    plain = text.replace(b"\0", b"")  # as it would be if it were not UTF-16
    if b"<!DOCTYPE" in plain or b"<!ENTITY" in plain:
        raise SlideError(path, "needs a description without a DOCTYPE; it has one. Remove it.")
    try:
        root = ET.fromstring(text)  # noqa: S314 - no DOCTYPE, hence no entities
    except ET.ParseError as error:
        raise SlideError(path, f"is damaged: its XML cannot be parsed ({error}).") from error
    if root.tag not in NAMESPACES:
        raise UnknownFormatError(path, f"holds {root.tag[:80]}, which is no Deep Zoom picture.")
    size = root.find("{*}Size")
    numbers = {
        "Width": _number(path, size, "Width", MAX_EXTENT_PX),
        "Height": _number(path, size, "Height", MAX_EXTENT_PX),
        "TileSize": _number(path, root, "TileSize", MAX_TILE_EDGE_PX),
        "Overlap": _number(path, root, "Overlap", MAX_TILE_EDGE_PX, least=0),
    }
    ending = root.get("Format", "")
    if ending.lower() not in FORMATS:
        raise SlideError(path, f"needs JPEG or PNG tiles; got {ending[:80]!r}. Make it anew.")
    return _Description(
        size=Size(numbers["Width"], numbers["Height"]),
        tile_px=numbers["TileSize"],
        overlap_px=numbers["Overlap"],
        ending=ending.lower(),
    )


def _number(path: str, element: ET.Element | None, name: str, most: int, *, least: int = 1) -> int:
    text = "" if element is None else element.get(name, "")
    value = int(text) if re.fullmatch(r"[0-9]{1,12}", text) else None
    if value is None or not least <= value <= most:
        rule = f"needs a {name} from {least} to {most}"
        raise SlideError(path, f"{rule}; got {text[:80]!r}. Make the .dzi anew.")
    return value
