"""Whole-slide images in DICOM, one or many files a slide."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from anlage.errors import SlideError
from anlage.geometry import Size
from anlage.slides.formats.dicom_index import read_dicom_index
from anlage.slides.formats.tile_parts import TileParts, read_part
from anlage.slides.formats.tiled_picture import TiledPicture
from anlage.slides.reader import SlideReader, levels_of, refuse_unless_one_pyramid
from anlage.slides.rectangle import Outcome, Rectangle
from anlage.slides.resolution import find_resolution
from anlage.slides.storage.byte_source import ByteSource


class DicomReader(SlideReader):
    """A DICOM slide of 8-bit RGB; needs wsidicom, which comes with ``anlage[dicom]``.

    It is asked before OpenSlide, which reads the same pixels: a damaged file can make OpenSlide
    end the process, and frames are decoded here as strictly as the tiles of a TIFF.

    Args:
        path: Any local file of the series.
        mpp: Resolution of level 0, micrometres per pixel, in place of what the file says.

    Raises:
        UnknownFormatError: If it is no whole-slide image in DICOM, or wsidicom is missing.
        SlideError: If it is damaged, or its pixels are not one plane of 8-bit RGB.
    """

    reader: ClassVar[str] = "dicom"

    def __init__(self, path: str, *, mpp: float | None = None) -> None:
        self._index, source = read_dicom_index(path)
        super().__init__(
            path,
            vendor=self._index.vendor,
            levels=levels_of([level.size for level in self._index.levels]),
            resolution=find_resolution(path, self._index.stated, override=mpp),
        )
        refuse_unless_one_pyramid(path, self.levels)
        for picture in (*self._index.levels, *self._index.associated.values()):
            picture.refuse_if_outside(source)
        self.version = source.version
        self._source: ByteSource | None = source

    @property
    def associated(self) -> tuple[str, ...]:
        """Names of the pictures beside the pyramid, sorted."""
        return tuple(self._index.associated)

    @property
    def icc_profile(self) -> bytes | None:
        """The ICC profile of level 0's first optical path; None without one."""
        return self._index.icc_profile

    def read_associated(self, name: str) -> NDArray[np.uint8]:
        """One of the ``associated`` pictures, whole, (height, width, 3) uint8 RGB."""
        source = self._open()
        if name not in self._index.associated:
            raise self._no_such_associated(name)
        picture = self._index.associated[name]
        return read_part(picture, source, Rectangle(0, 0, *picture.size))

    def close(self) -> None:
        """Let go of the files; they are closed when the last read has ended."""
        super().close()
        self._source = None

    def native_tile(self, level: int) -> Size | None:
        """Pixels of the frames that a level is stored in."""
        return self._index.levels[level].tile

    def tiled_picture(self, level: int) -> tuple[TiledPicture, ByteSource]:
        """The encoded frames of a level and the files they lie in."""
        return self._index.levels[level], self._open()

    def reductions(self, level: int) -> tuple[int, ...]:
        """1, 2, 4 and 8 for JPEG in frames whose edges they divide; else 1 alone."""
        return self._index.levels[level].reductions

    def _read_inside(self, level: int, left: int, top: int, size: Size) -> NDArray[np.uint8]:
        return self._read_part(level, Rectangle(left, top, *size), 1)

    def _read_part(self, level: int, part: Rectangle, reduce: int) -> NDArray[np.uint8]:
        return read_part(self._index.levels[level], self._open(), part, reduce=reduce)

    def _start_parts(
        self, level: int, parts: Sequence[Rectangle], reduce: int
    ) -> Callable[[], Iterator[tuple[int, Outcome]]]:
        return TileParts(self._index.levels[level], self._open(), parts, reduce=reduce).read

    def _open(self) -> ByteSource:
        source = self._source
        if source is None:
            raise SlideError(self.path, "has been closed. Open it again with open_slide.")
        return source
