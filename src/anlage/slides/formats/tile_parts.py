"""Several rectangles of one picture, of which every touched tile is read and decoded once."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anlage.errors import SlideError
from anlage.geometry import Size
from anlage.slides.formats.tiled_picture import TiledPicture
from anlage.slides.rectangle import Outcome, Rectangle
from anlage.slides.storage.byte_source import ByteSource, Range

Window = tuple[slice, slice]
TILES_AT_ONCE = 256  # whose bytes are held together
MAX_KEPT_BYTES = 2**22  # a larger tile is decoded into memory of its own


class _Room(threading.local):
    """Memory that a thread decodes its tiles into, one after the other."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def of(self, n_bytes: int) -> NDArray[np.uint8] | None:
        if n_bytes > MAX_KEPT_BYTES:
            return None
        if n_bytes > len(self._bytes):
            self._bytes = np.empty(n_bytes, np.uint8)
        return self._bytes


_ROOM = _Room()


@dataclass(slots=True)
class _Part:
    """A rectangle on its way: what there is of it, and how many tiles are still to come."""

    number: int
    shape: tuple[int, int, int]
    n_missing: int = 0
    pixels: NDArray[np.uint8] | None = None
    error: SlideError | None = None

    def take(self, tile: NDArray[np.uint8] | SlideError, target: Window, source: Window) -> None:
        """Copy what a tile shows of it."""
        self.n_missing -= 1
        if self.error is not None:
            return
        if isinstance(tile, SlideError):
            self.error, self.pixels = tile, None
            return
        if self.pixels is None:
            self.pixels = np.empty(self.shape, np.uint8)
        self.pixels[target] = tile[source]


class TileParts:
    """Rectangles to be read from one picture; from a remote file their bytes are on the way.

    A rectangle is handed out as soon as its last tile is decoded, and held no longer; a damaged
    tile costs the rectangles that touch it, and no others.

    Args:
        picture: Where the tiles lie.
        file: The file the picture is in.
        places: Rectangles wholly inside the picture, in pixels of it reduced.
        reduce: One of the picture's ``reductions``.
    """

    def __init__(
        self, picture: TiledPicture, file: ByteSource, places: Sequence[Rectangle], *, reduce: int
    ) -> None:
        self._picture, self._file, self._reduce = picture, file, reduce
        self._tile_size = Size(picture.tile.width // reduce, picture.tile.height // reduce)
        self._touching: dict[int, list[tuple[_Part, Window, Window]]] = {}
        for number, place in enumerate(places):
            self._plan(_Part(number, (place.height, place.width, 3)), place)
        self._tiles = sorted(self._touching)
        self._fetched = file.start(self._ranges()) if file.is_remote else None
        if self._fetched is not None:  # nobody is left to read what has not been asked for yet
            weakref.finalize(self, self._fetched.cancel)

    def read(self) -> Iterator[tuple[int, Outcome]]:
        """Number in ``places`` and pixels of each, or why it has none, as they are finished."""
        room = _ROOM.of(self._tile_size.width * self._tile_size.height * 3)
        for tile, data in self._encoded():
            pixels = data if isinstance(data, SlideError) else self._decoded(tile, data, room)
            touching = self._touching[tile]
            for part, target, source in touching:
                part.take(pixels, target, source)
            for part, _, _ in touching:  # only now: who gets one may read on in the same room
                if part.n_missing == 0:
                    outcome = part.pixels if part.error is None else part.error
                    part.pixels = None
                    if outcome is not None:
                        yield part.number, outcome

    def _plan(self, part: _Part, place: Rectangle) -> None:
        """Note what each tile shows of a part."""
        columns = _steps(place.left, place.right, self._tile_size.width)
        n_across, touching = self._picture.n_across, self._touching
        for row, y_target, y_source in _steps(place.top, place.bottom, self._tile_size.height):
            for column, x_target, x_source in columns:
                piece = (part, (y_target, x_target), (y_source, x_source))
                touching.setdefault(row * n_across + column, []).append(piece)
                part.n_missing += 1

    def _encoded(self) -> Iterator[tuple[int, bytes | SlideError]]:
        """Every touched tile and its bytes; of a local file one at a time, to hold no more."""
        ranges = self._ranges()
        if self._fetched is None:
            for tile, (offset, count) in zip(self._tiles, ranges, strict=True):
                try:
                    yield tile, self._file.read(offset, count)
                except SlideError as error:
                    yield tile, error
            return
        try:
            fetched: Sequence[bytes | SlideError] = self._fetched.result()
        except SlideError as error:
            fetched = [error] * len(ranges)
        yield from zip(self._tiles, fetched, strict=True)

    def _ranges(self) -> list[Range]:
        return [self._picture.place(tile) for tile in self._tiles]

    def _decoded(
        self, tile: int, data: bytes, room: NDArray[np.uint8] | None
    ) -> NDArray[np.uint8] | SlideError:
        try:
            return self._picture.decode(
                tile, data, path=self._file.path, reduce=self._reduce, buffer=room
            )
        except SlideError as error:
            return error


def _steps(start: int, stop: int, edge: int) -> list[tuple[int, slice, slice]]:
    """Tiles of this edge from start to stop: their number, their share of it, and within them."""
    steps = []
    for number in range(start // edge, (stop - 1) // edge + 1):
        at = number * edge
        first, last = max(start, at), min(stop, at + edge)
        steps.append((number, slice(first - start, last - start), slice(first - at, last - at)))
    return steps


def read_part(
    picture: TiledPicture, file: ByteSource, place: Rectangle, *, reduce: int = 1
) -> NDArray[np.uint8]:
    """One rectangle that lies wholly inside a picture.

    Args:
        picture: Where the tiles lie.
        file: The file the picture is in.
        place: What to read, in pixels of the picture reduced.
        reduce: One of the picture's ``reductions``.

    Returns:
        (place.height, place.width, 3) uint8 RGB, a new array.

    Raises:
        SlideError: If a touched tile is damaged; it names the tile.
    """
    width, height = picture.tile.width // reduce, picture.tile.height // reduce
    columns = _steps(place.left, place.right, width)
    steps = [
        (row * picture.n_across + column, (y_target, x_target), (y_source, x_source))
        for row, y_target, y_source in _steps(place.top, place.bottom, height)
        for column, x_target, x_source in columns
    ]
    path, room = file.path, _ROOM.of(width * height * 3)
    region = np.empty((place.height, place.width, 3), np.uint8)
    for start in range(0, len(steps), TILES_AT_ONCE):
        some = steps[start : start + TILES_AT_ONCE]
        encoded = file.read_many([picture.place(tile) for tile, _, _ in some])
        for (tile, target, source), data in zip(some, encoded, strict=True):
            pixels = picture.decode(tile, data, path=path, reduce=reduce, buffer=room)
            region[target] = pixels[source]
    return region
