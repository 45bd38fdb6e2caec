"""Slides in TIFF, read natively: Aperio SVS, OME-TIFF, generic pyramids; tiled or in strips."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from anlage.errors import SlideError
from anlage.geometry import Size
from anlage.slides.file_bytes import FileBytes
from anlage.slides.reader import SlideReader, UnknownFormatError, levels_of
from anlage.slides.rectangle import Outcome, Rectangle
from anlage.slides.resolution import find_resolution
from anlage.slides.tiff_chain import refuse_broken_chain
from anlage.slides.tiff_index import read_tiff_index
from anlage.slides.tile_parts import TileParts, read_part


class TiffReader(SlideReader):
    """A TIFF slide of 8-bit RGB: its index is parsed once, then each read decodes what it touches.

    Reads share one file descriptor and no lock; the decoders release the GIL. A damaged tile
    costs the reads that touch it and no others.

    Args:
        path: The slide's file.
        mpp: Resolution of level 0, micrometres per pixel, in place of what the file says.

    Raises:
        UnknownFormatError: If it is no TIFF, or holds something else than 8-bit RGB.
        SlideError: If pages or tiles lie beyond the end of the file: it was cut.
    """

    reader: ClassVar[str] = "tiled-tiff"

    def __init__(self, path: str, *, mpp: float | None = None) -> None:
        file = FileBytes(path)
        refuse_broken_chain(file)
        index = read_tiff_index(path)
        super().__init__(
            path,
            vendor=index.vendor,
            levels=levels_of([level.size for level in index.levels]),
            resolution=find_resolution(path, index.stated, override=mpp),
        )
        self._refuse_if_not_one_pyramid()
        self._index = index
        self._file: FileBytes | None = file
        for picture in (*index.levels, *index.associated.values()):
            picture.refuse_if_outside(file)

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
        file = self._open_file()
        if name not in self._index.associated:
            raise self._no_such_associated(name)
        picture = self._index.associated[name]
        return read_part(picture, file, Rectangle(0, 0, *picture.size))

    def close(self) -> None:
        """Let go of the file; it is closed when the last read has ended."""
        super().close()
        self._file = None

    def native_tile(self, level: int) -> Size | None:
        """Pixels of the tiles, or strips, that a level is stored in."""
        return self._index.levels[level].tile

    def reductions(self, level: int) -> tuple[int, ...]:
        """1, 2, 4 and 8 for JPEG in tiles whose edges they divide; else 1 alone."""
        return self._index.levels[level].reductions

    def _read_inside(self, level: int, left: int, top: int, size: Size) -> NDArray[np.uint8]:
        return self._read_part(level, Rectangle(left, top, *size), 1)

    def _read_part(self, level: int, part: Rectangle, reduce: int) -> NDArray[np.uint8]:
        return read_part(self._index.levels[level], self._open_file(), part, reduce=reduce)

    def _start_parts(
        self, level: int, parts: Sequence[Rectangle], reduce: int
    ) -> Callable[[], Iterator[tuple[int, Outcome]]]:
        picture = self._index.levels[level]
        return TileParts(picture, self._open_file(), parts, reduce=reduce).read

    def _open_file(self) -> FileBytes:
        file = self._file
        if file is None:
            raise SlideError(self.path, "has been closed. Open it again with open_slide.")
        return file

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
