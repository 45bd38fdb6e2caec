"""Slides in TIFF, read natively: Aperio SVS, OME-TIFF, generic pyramids; tiled or in strips."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from anlage.errors import SlideError
from anlage.geometry import Size
from anlage.slides.formats.tiff_index import TiffIndex
from anlage.slides.formats.tiff_opening import OpenTiff, open_tiff, reopen_tiff
from anlage.slides.formats.tile_parts import TileParts, read_part
from anlage.slides.formats.tiled_picture import TiledPicture
from anlage.slides.reader import SlideReader, levels_of, refuse_unless_one_pyramid
from anlage.slides.rectangle import Outcome, Rectangle
from anlage.slides.resolution import find_resolution
from anlage.slides.storage.byte_source import ByteSource, SlideChangedError


class TiffReader(SlideReader):
    """A TIFF slide of 8-bit RGB: its index is parsed once, then each read decodes what it touches.

    Reads share one file descriptor and no lock; the decoders release the GIL. A damaged tile
    costs the reads that touch it and no others. A remote slide that was opened before is opened
    without a request; should its first read find that it is another file by now, that is opened
    in its place if it says the same of itself, its levels and resolution, and refused if not.

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
        refuse_unless_one_pyramid(path, self.levels)
        self.version = self._opened.source.version
        self._index = index
        self._reductions = tuple(level.reductions for level in index.levels)

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
        return self._reductions[level]

    def _read_inside(self, level: int, left: int, top: int, size: Size) -> NDArray[np.uint8]:
        return self._read_part(level, Rectangle(left, top, *size), 1)

    def _read_part(self, level: int, part: Rectangle, reduce: int) -> NDArray[np.uint8]:
        return self._checked(
            lambda index, source: read_part(
                self._picture(index, level, reduce), source, part, reduce=reduce
            )
        )

    def _start_parts(
        self, level: int, parts: Sequence[Rectangle], reduce: int
    ) -> Callable[[], Iterator[tuple[int, Outcome]]]:
        def start(opened: OpenTiff) -> TileParts:
            picture = self._picture(opened.index, level, reduce)
            return TileParts(picture, opened.source, parts, reduce=reduce)

        presumed = self._open()
        started = start(presumed)
        if not presumed.is_presumed:
            return started.read

        def read_checked() -> Iterator[tuple[int, Outcome]]:
            outcomes = list(started.read())
            is_changed = any(isinstance(outcome, SlideChangedError) for _, outcome in outcomes)
            is_read = any(not isinstance(outcome, SlideError) for _, outcome in outcomes)
            try:
                if is_changed or (is_read and not _is_still_there(presumed.source)):
                    outcomes = list(start(self._reopened(presumed)).read())
            except SlideError as error:
                outcomes = [(number, error) for number, _ in outcomes]
            if not all(isinstance(outcome, SlideError) for _, outcome in outcomes):
                presumed.is_presumed = False
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
            is_changed = not _is_still_there(opened.source)
        except SlideChangedError:
            is_changed = True
        if is_changed:
            fresh = self._reopened(opened)
            return read(fresh.index, fresh.source)
        opened.is_presumed = False
        return pixels

    def _open(self) -> OpenTiff:
        opened = self._opened
        if opened is None:
            raise SlideError(self.path, "has been closed. Open it again with open_slide.")
        return opened

    def _reopened(self, used: OpenTiff) -> OpenTiff:
        """The file that is there now, if it has only been presumed which one that is.

        No lock: a forked child might find it held. At worst two threads parse the same file.
        """
        opened = self._open()
        if opened is not used or not used.is_presumed:  # another thread was first
            return opened
        fresh = reopen_tiff(self.path)
        if _told(fresh.index) != _told(used.index):
            raise self._has_changed()
        self.version = fresh.source.version
        self._opened, self._index = fresh, fresh.index
        return fresh

    def _picture(self, index: TiffIndex, level: int, reduce: int) -> TiledPicture:
        picture = index.levels[level]
        if reduce not in picture.reductions:  # of a file that took another's place
            raise self._has_changed()
        return picture

    def _has_changed(self) -> SlideChangedError:
        return SlideChangedError(self.path, "has changed since it was last opened. Open it again.")


def _is_still_there(source: ByteSource) -> bool:
    """Whether a file is the presumed one, also where all that was read of it are tiles left out."""
    try:
        if not source.is_confirmed:
            source.read(0, 1)
    except SlideChangedError:
        return False
    return True


def _told(index: TiffIndex) -> tuple[object, ...]:
    """What a slide has told of itself when it was opened, which others may have acted on."""
    sizes = [level.size for level in index.levels]
    beside = {name: picture.size for name, picture in index.associated.items()}
    return sizes, beside, index.vendor, index.stated, index.icc_profile
