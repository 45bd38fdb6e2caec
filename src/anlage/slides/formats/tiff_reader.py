"""Slides in TIFF, read natively: Aperio SVS, OME-TIFF, generic pyramids; tiled or in strips."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from anlage.errors import SlideError
from anlage.geometry import Size
from anlage.slides.formats.tiff_index import TiffIndex
from anlage.slides.formats.tiff_opening import OpenTiff, open_tiff, reopen_tiff
from anlage.slides.formats.tile_parts import TileParts, read_part
from anlage.slides.formats.tiled_picture import TiledPicture
from anlage.slides.reader import SlideReader, UnknownFormatError, levels_of
from anlage.slides.rectangle import Outcome, Rectangle
from anlage.slides.resolution import find_resolution
from anlage.slides.storage.byte_source import ByteSource, SlideChangedError


class TiffReader(SlideReader):
    """A TIFF slide of 8-bit RGB: its index is parsed once, then each read decodes what it touches.

    Reads share one file descriptor and no lock; the decoders release the GIL. A damaged tile
    costs the reads that touch it and no others. A remote slide that was opened before is opened
    without a request; should its first read find that it is another file by now, that is opened
    in its place if it has the same levels, and refused if not.

    Args:
        path: The slide's file, or its URL.
        mpp: Resolution of level 0, micrometres per pixel, in place of what the file says.
        version: Of a remote slide, if a catalogue says it: no other is read.
        size: Its length, bytes, likewise.

    Raises:
        UnknownFormatError: If it is no TIFF, or holds something else than 8-bit RGB.
        SlideError: If pages or tiles lie beyond the end of the file: it was cut.
    """

    reader: ClassVar[str] = "tiled-tiff"

    def __init__(
        self,
        path: str,
        *,
        mpp: float | None = None,
        version: str | None = None,
        size: int | None = None,
    ) -> None:
        self._opened: OpenTiff | None = open_tiff(path, version=version, size=size)
        index = self._opened.index
        super().__init__(
            path,
            vendor=index.vendor,
            levels=levels_of([level.size for level in index.levels]),
            resolution=find_resolution(path, index.stated, override=mpp),
        )
        self._refuse_if_not_one_pyramid()
        self.version = self._opened.source.version
        self._index = index
        self._swap = threading.Lock()

    @property
    def associated(self) -> tuple[str, ...]:
        """Names of the pictures beside the pyramid, sorted."""
        return tuple(self._index.associated)

    @property
    def icc_profile(self) -> bytes | None:
        """The ICC profile of level 0; None without one."""
        return self._index.icc_profile

    def read_associated(self, name: str) -> NDArray[np.uint8]:
        """One of the ``associated`` pictures, whole, (height, width, 3) uint8 RGB."""
        self._refuse_if_closed()
        if name not in self._index.associated:
            raise self._no_such_associated(name)
        place = Rectangle(0, 0, *self._index.associated[name].size)
        return self._checked(lambda index, source: read_part(index.associated[name], source, place))

    def close(self) -> None:
        """Let go of the file; it is closed when the last read has ended."""
        super().close()
        self._opened = None

    def native_tile(self, level: int) -> Size | None:
        """Pixels of the tiles, or strips, that a level is stored in."""
        return self._index.levels[level].tile

    def tiled_picture(self, level: int) -> tuple[TiledPicture, ByteSource]:
        """The encoded tiles, or strips, of a level and the file they lie in."""
        opened = self._open()
        return opened.index.levels[level], opened.source

    def reductions(self, level: int) -> tuple[int, ...]:
        """1, 2, 4 and 8 for JPEG in tiles whose edges they divide; else 1 alone."""
        return self._index.levels[level].reductions

    def _read_inside(self, level: int, left: int, top: int, size: Size) -> NDArray[np.uint8]:
        return self._read_part(level, Rectangle(left, top, *size), 1)

    def _read_part(self, level: int, part: Rectangle, reduce: int) -> NDArray[np.uint8]:
        return self._checked(
            lambda index, source: read_part(index.levels[level], source, part, reduce=reduce)
        )

    def _start_parts(
        self, level: int, parts: Sequence[Rectangle], reduce: int
    ) -> Callable[[], Iterator[tuple[int, Outcome]]]:
        def start() -> TileParts:
            opened = self._open()
            return TileParts(opened.index.levels[level], opened.source, parts, reduce=reduce)

        started = start()
        if not self._open().is_presumed:
            return started.read

        def read_checked() -> Iterator[tuple[int, Outcome]]:
            outcomes = list(started.read())
            if any(isinstance(outcome, SlideChangedError) for _, outcome in outcomes):
                try:
                    self._reopen()
                    outcomes = list(start().read())
                except SlideError as error:
                    outcomes = [(number, error) for number, _ in outcomes]
            if not all(isinstance(outcome, SlideError) for _, outcome in outcomes):
                self._confirm()
            yield from outcomes

        return read_checked

    def _checked(
        self, read: Callable[[TiffIndex, ByteSource], NDArray[np.uint8]]
    ) -> NDArray[np.uint8]:
        """Read; if an index from last time is not this file's, once more with the right one."""
        opened = self._open()
        if not opened.is_presumed:
            return read(opened.index, opened.source)
        try:
            pixels = read(opened.index, opened.source)
        except SlideChangedError:
            opened = self._reopen()
            pixels = read(opened.index, opened.source)
        self._confirm()
        return pixels

    def _open(self) -> OpenTiff:
        opened = self._opened
        if opened is None:
            raise SlideError(self.path, "has been closed. Open it again with open_slide.")
        return opened

    def _confirm(self) -> None:
        with self._swap:
            if self._opened is not None:
                self._opened = replace(self._opened, is_presumed=False)

    def _reopen(self) -> OpenTiff:
        with self._swap:
            opened = self._open()
            if not opened.is_presumed:  # another thread was first
                return opened
            fresh = reopen_tiff(self.path)
            if levels_of([level.size for level in fresh.index.levels]) != self.levels:
                raise SlideChangedError(
                    self.path, "has changed since it was last opened. Open it again."
                )
            self._opened, self._index = fresh, fresh.index
            self.version = fresh.source.version
            return fresh

    def _refuse_if_not_one_pyramid(self) -> None:
        full = self.levels[0]
        for level in self.levels:
            height = full.height / full.width * level.width
            if abs(height - level.height) > max(2, 0.01 * height):
                raise UnknownFormatError(
                    self.path,
                    f"needs levels of one shape; got {full.width} x {full.height} and "
                    f"{level.width} x {level.height}.",
                )
