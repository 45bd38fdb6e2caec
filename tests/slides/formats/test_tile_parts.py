from __future__ import annotations

import gc
from collections.abc import Sequence
from concurrent.futures import Future
from io import BytesIO
from typing import BinaryIO, ClassVar

import numpy as np
import pytest
import simplejpeg
from synthetic_slides import tissue_like

from anlage.errors import SlideError
from anlage.geometry import Size
from anlage.slides.formats import tile_parts
from anlage.slides.formats.tile_codec import TileCodec
from anlage.slides.formats.tile_parts import TileParts, read_part
from anlage.slides.formats.tiled_picture import TiledPicture
from anlage.slides.rectangle import Rectangle, around
from anlage.slides.storage.byte_source import ByteSource, Range

PIXELS = tissue_like(64, 48)
EDGE = 16
PLACES = [Rectangle(0, 0, 20, 20), Rectangle(3, 5, 40, 9), Rectangle(48, 32, 16, 16)]


class FarFile(ByteSource):
    """Bytes in memory that pretend to be remote."""

    is_remote: ClassVar[bool] = True

    def __init__(self, data: bytes, *, error: SlideError | None = None) -> None:
        self.path, self.size, self.version = "far", len(data), "1"
        self.data, self.error, self.started = data, error, []

    def read(self, offset: int, count: int) -> bytes:
        msg = "a remote file is read by many ranges at once"
        raise AssertionError(msg)

    def read_many(self, ranges: Sequence[Range]) -> list[bytes]:
        if self.error is not None:
            raise self.error
        return [self.data[offset : offset + count] for offset, count in ranges]

    def start(self, ranges: Sequence[Range]) -> Future[list[bytes]]:
        self.started.append(list(ranges))
        future: Future[list[bytes]] = Future()
        try:
            future.set_result(self.read_many(ranges))
        except SlideError as error:
            future.set_exception(error)
        return future

    def as_file(self) -> BinaryIO:
        return BytesIO(self.data)


def picture(*, left_out: int | None = None) -> tuple[TiledPicture, bytes]:
    """12 uncompressed tiles, behind 8 bytes of something else; one may be left out."""
    tiles = [
        PIXELS[y : y + EDGE, x : x + EDGE].tobytes()
        for y in range(0, 48, EDGE)
        for x in range(0, 64, EDGE)
    ]
    counts = np.full(12, EDGE * EDGE * 3, np.int64)
    offsets = 8 + np.arange(12, dtype=np.int64) * counts[0]
    if left_out is not None:
        counts[left_out] = offsets[left_out] = 0
    tiled = TiledPicture(
        "level 0", Size(64, 48), Size(EDGE, EDGE), offsets, counts, TileCodec("none")
    )
    return tiled, bytes(8) + b"".join(tiles)


def test_bytes_of_a_remote_file_are_asked_for_once_and_at_once() -> None:
    tiled, data = picture()
    file = FarFile(data)
    parts = TileParts(tiled, file, PLACES, reduce=1)
    assert len(file.started) == 1
    assert len(file.started[0]) == len(set(file.started[0])) == 6  # every touched tile once
    found = dict(parts.read())
    for number, place in enumerate(PLACES):
        expected = PIXELS[place.top : place.bottom, place.left : place.right]
        assert np.array_equal(found[number], expected)


def test_a_failed_request_costs_what_it_was_for() -> None:
    tiled, data = picture()
    error = SlideError("far", "answers 403.")
    found = dict(TileParts(tiled, FarFile(data, error=error), PLACES, reduce=1).read())
    assert found == dict.fromkeys(range(3), error)


def test_a_tile_that_was_left_out_is_white() -> None:
    tiled, data = picture(left_out=11)
    found = dict(TileParts(tiled, FarFile(data), PLACES, reduce=1).read())
    assert (found[2] == 255).all()
    assert np.array_equal(found[0], PIXELS[:20, :20])
    assert (read_part(tiled, FarFile(data), PLACES[2]) == 255).all()


def test_many_tiles_are_fetched_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    tiled, data = picture()
    monkeypatch.setattr(tile_parts, "TILES_AT_ONCE", 5)
    asked: list[int] = []
    original = FarFile.read_many

    def noted(file: FarFile, ranges: Sequence[Range]) -> list[bytes]:
        asked.append(len(ranges))
        return original(file, ranges)

    monkeypatch.setattr(FarFile, "read_many", noted)
    whole = read_part(tiled, FarFile(data), Rectangle(0, 0, 64, 48))
    assert np.array_equal(whole, PIXELS)
    assert asked == [5, 5, 2]


@pytest.mark.parametrize(
    ("place", "part"),
    [
        (Rectangle(-3, -4, 10, 10), Rectangle(0, 0, 7, 6)),
        (Rectangle(60, 40, 10, 10), Rectangle(60, 40, 4, 8)),
        (Rectangle(5, 6, 7, 8), Rectangle(5, 6, 7, 8)),
        (Rectangle(64, 0, 5, 5), None),
        (Rectangle(0, -5, 5, 5), None),
    ],
)
def test_the_part_inside_and_white_around_it(place: Rectangle, part: Rectangle | None) -> None:
    assert place.inside(Size(64, 48)) == part
    pixels = None if part is None else np.zeros((part.height, part.width, 3), np.uint8)
    region = place.on_white(pixels, part)
    assert region.shape == (place.height, place.width, 3)
    assert (region == 0).all(-1).sum() == (0 if part is None else part.n_px)


def test_the_rectangle_around_several() -> None:
    assert around(PLACES) == Rectangle(0, 0, 64, 48)


def test_two_that_are_read_in_turns_do_not_disturb_each_other() -> None:
    """A thread decodes all its tiles into the same memory."""
    tiles = [
        bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(PIXELS[y : y + EDGE, x : x + EDGE])))
        for y in range(0, 48, EDGE)
        for x in range(0, 64, EDGE)
    ]
    counts = np.array([len(tile) for tile in tiles])
    grid = TiledPicture(
        *("level 0", Size(64, 48), Size(EDGE, EDGE)),
        *(np.cumsum(counts) - counts, counts, TileCodec("jpeg")),
    )
    file = FarFile(b"".join(tiles))
    whole = read_part(grid, file, Rectangle(0, 0, 64, 48))
    places = [Rectangle(16 * i + d, 16, 4, 4) for i in (1, 2) for d in (0, 3, 7)]
    others = TileParts(grid, file, [Rectangle(0, 0, 16, 16)] * 9, reduce=1)
    reads = zip(TileParts(grid, file, places, reduce=1).read(), others.read(), strict=False)
    for (number, found), _ in reads:
        left, top, *_ = places[number]
        assert isinstance(found, np.ndarray)
        assert np.array_equal(found, whole[top : top + 4, left : left + 4])


def test_requests_for_what_nobody_reads_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, data = picture()
    file, future = FarFile(data), Future[list[bytes]]()
    monkeypatch.setattr(file, "start", lambda _: future)
    parts = TileParts(grid, file, PLACES, reduce=1)
    assert not future.cancelled()
    del parts
    gc.collect()
    assert future.cancelled()
