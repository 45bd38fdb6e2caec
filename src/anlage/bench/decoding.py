"""The decoder alone, on exactly the native tiles that tiles are cut from: the limit of reading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from anlage.errors import SlideError
from anlage.geometry import Size, level_px
from anlage.slides.formats.tiled_picture import TiledPicture
from anlage.slides.levels import Decode, TileWindow, choose_source
from anlage.slides.reader import SlideReader
from anlage.slides.rectangle import Rectangle
from anlage.slides.storage.object_store import GAP_BYTES, LONGEST_BYTES
from anlage.slides.storage.range_merging import merge_ranges


@dataclass(frozen=True, slots=True, eq=False)
class NativeWork:
    """The native tiles of some tiles of one slide, their bytes in memory.

    Attributes:
        decoder: What decodes them: "simplejpeg", or the name of another codec.
        n_native: How many there are, each counted once.
        n_bytes: Bytes that reading them takes: their own; of a remote slide also those between
            them that come in the same request.
        decode: Decodes all of them and throws the pixels away.
    """

    decoder: str
    n_native: int
    n_bytes: int
    _picture: TiledPicture
    _encoded: list[tuple[int, bytes]]
    _reduce: int
    _path: str

    def decode(self) -> None:
        """Decode every tile once, one after the other, and throw the pixels away."""
        width, height = (edge // self._reduce for edge in self._picture.tile)
        if self.decoder == "simplejpeg":
            room = np.empty(width * height * 3, np.uint8)
            for _, data in self._encoded:
                _decode_jpeg(data, room, Size(width, height), is_reduced=self._reduce > 1)
            return
        for number, data in self._encoded:
            self._picture.decode(number, data, path=self._path, reduce=self._reduce)


def native_work(
    slide: SlideReader, windows: Sequence[TileWindow], *, decode: Decode
) -> NativeWork | None:
    """The native tiles under tiles of one resolution, fetched; None if the reader hides them.

    Args:
        slide: An open slide.
        windows: Tiles of it, all of one size and mpp: they are read from one level.
        decode: As for ``read_tile``.

    Raises:
        SlideError: If the bytes cannot be read. Native tiles that are damaged are left out.
    """
    size_px, mpp = windows[0].size_px, windows[0].mpp
    source = choose_source(slide, size_px=size_px, mpp=mpp, decode=decode)
    found = slide.tiled_picture(source.level)
    if found is None:
        return None
    picture, file = found
    downsample = slide.levels[source.level].downsample * source.reduce
    touched: set[int] = set()
    for window in windows:
        left, top = (level_px(at, downsample=downsample) for at in (window.x, window.y))
        touched |= _touched(picture, Rectangle(left, top, *2 * [source.edge_px]), source.reduce)
    numbers = [number for number in sorted(touched) if picture.place(number)[1] > 0]
    ranges = [picture.place(number) for number in numbers]
    data = file.read_many(ranges)
    pieces = merge_ranges(ranges, gap=GAP_BYTES, longest=LONGEST_BYTES)
    fetched = sum(piece.count for piece in pieces) if file.is_remote else sum(map(len, data))
    sound = [
        (number, one)
        for number, one in zip(numbers, data, strict=True)
        if _is_sound(picture, number, one, source.reduce)
    ]
    is_jpeg = picture.codec.kind == "jpeg"
    if is_jpeg and picture.codec.jpeg_head:
        sound = [(number, picture.codec.jpeg_head + one[2:]) for number, one in sound]
    return NativeWork(
        decoder="simplejpeg" if is_jpeg else picture.codec.kind,
        n_native=len(numbers),
        n_bytes=fetched,
        _picture=picture,
        _encoded=sound,
        _reduce=source.reduce,
        _path=slide.path,
    )


def _touched(picture: TiledPicture, place: Rectangle, reduce: int) -> set[int]:
    """Numbers of the native tiles under a rectangle of the picture reduced."""
    reduced = Size(-(-picture.size.width // reduce), -(-picture.size.height // reduce))
    part = place.inside(reduced)
    if part is None:
        return set()
    width, height = picture.tile.width // reduce, picture.tile.height // reduce
    columns = range(part.left // width, (part.right - 1) // width + 1)
    rows = range(part.top // height, (part.bottom - 1) // height + 1)
    return {row * picture.n_across + column for row in rows for column in columns}


def _is_sound(picture: TiledPicture, number: int, data: bytes, reduce: int) -> bool:
    try:
        picture.decode(number, data, path="", reduce=reduce)
    except SlideError:
        return False
    return True


def _decode_jpeg(data: bytes, room: NDArray[np.uint8], size: Size, *, is_reduced: bool) -> None:
    if is_reduced:
        simplejpeg.decode_jpeg(
            data, "RGB", min_height=size.height, min_width=size.width, buffer=room
        )
    else:
        simplejpeg.decode_jpeg(data, "RGB", buffer=room)
