"""Several rectangles of one picture, of which every touched tile is read and decoded once."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anlage.errors import SlideError
from anlage.slides.byte_source import ByteSource, Range
from anlage.slides.rectangle import WHITE, Outcome, Rectangle
from anlage.slides.tiled_picture import TiledPicture

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
    place: Rectangle
    n_missing: int = 0
    pixels: NDArray[np.uint8] | None = None
    error: SlideError | None = None

    def take(self, tile: NDArray[np.uint8] | SlideError | None, at: Rectangle) -> None:
        """Copy what a tile at this place shows of it; None is a white tile."""
        self.n_missing -= 1
        if self.error is not None:
            return
        if isinstance(tile, SlideError):
            self.error, self.pixels = tile, None
            return
        place = self.place
        if self.pixels is None:
            self.pixels = np.empty((place.height, place.width, 3), np.uint8)
        left, right = max(place.left, at.left), min(place.right, at.right)
        top, bottom = max(place.top, at.top), min(place.bottom, at.bottom)
        target = self.pixels[
            top - place.top : bottom - place.top, left - place.left : right - place.left
        ]
        if tile is None:
            target[...] = WHITE
        else:
            target[...] = tile[top - at.top : bottom - at.top, left - at.left : right - at.left]


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
        self._width, self._height = picture.tile.width // reduce, picture.tile.height // reduce
        self._touching = self._parts_by_tile(places)
        self._tiles = sorted(self._touching)
        self._fetched = file.start(self._ranges()) if file.is_remote else None

    def read(self) -> Iterator[tuple[int, Outcome]]:
        """Number in ``places`` and pixels of each, or why it has none, as they are finished."""
        for tile, data in self._encoded():
            at = self._place(tile)
            pixels = data if isinstance(data, SlideError) else self._decoded(tile, data)
            for part in self._touching[tile]:
                part.take(pixels, at)
                if part.n_missing == 0:
                    outcome = part.pixels if part.error is None else part.error
                    part.pixels = None
                    if outcome is not None:
                        yield part.number, outcome

    def _parts_by_tile(self, places: Sequence[Rectangle]) -> dict[int, list[_Part]]:
        touching: dict[int, list[_Part]] = {}
        for number, place in enumerate(places):
            part = _Part(number, place)
            columns = range(place.left // self._width, (place.right - 1) // self._width + 1)
            for row in range(place.top // self._height, (place.bottom - 1) // self._height + 1):
                for column in columns:
                    tile = row * self._picture.n_across + column
                    touching.setdefault(tile, []).append(part)
                    part.n_missing += 1
        return touching

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

    def _decoded(self, tile: int, data: bytes) -> NDArray[np.uint8] | SlideError | None:
        room = _ROOM.of(self._width * self._height * 3)
        try:
            return self._picture.decode(
                tile, data, path=self._file.path, reduce=self._reduce, buffer=room
            )
        except SlideError as error:
            return error

    def _place(self, tile: int) -> Rectangle:
        row, column = divmod(tile, self._picture.n_across)
        return Rectangle(column * self._width, row * self._height, self._width, self._height)


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
    ((_, outcome),) = TileParts(picture, file, [place], reduce=reduce).read()
    if isinstance(outcome, SlideError):
        raise outcome
    return outcome
