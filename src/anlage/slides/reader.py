"""The one interface to a slide, whatever its file format, and the table of formats."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from anlage.errors import ResolutionError, SlideError
from anlage.geometry import Size, level_px
from anlage.slides.resolution import Resolution

WHITE = 255


class UnknownFormatError(SlideError):
    """This reader does not read such files; another may. Damage is a plain ``SlideError``."""


@dataclass(frozen=True)
class Level:
    """One step of a slide's pyramid; level 0 is the finest.

    Attributes:
        width: In pixels of this level.
        height: In pixels of this level.
        downsample: Level-0 pixels per pixel of this level, >= 1.
    """

    width: int
    height: int
    downsample: float


class SlideReader(ABC):
    """A slide that is open for reading; a context manager, usable from many threads at once.

    Attributes:
        reader: Name of the kind of reader: "tiled-tiff", "openslide" or "image".
        path: The file, as it was given.
        vendor: Who wrote the format, e.g. "aperio", "generic-tiff", "png".
        levels: The pyramid, finest first; never empty.
        resolution: Micrometres per level-0 pixel and where that came from; None if nothing
            usable says it (then ``mpp`` says why).
    """

    reader: ClassVar[str]

    def __init__(
        self,
        path: str,
        *,
        vendor: str,
        levels: Sequence[Level],
        resolution: Resolution | ResolutionError,
    ) -> None:
        self.path = path
        self.vendor = vendor
        self.levels = tuple(levels)
        self._resolution = resolution
        self._is_closed = False

    @property
    def resolution(self) -> Resolution | None:
        """Resolution of level 0, or None if the slide does not say it usably."""
        return self._resolution if isinstance(self._resolution, Resolution) else None

    @property
    def mpp(self) -> float:
        """Resolution of level 0, micrometres per pixel.

        Raises:
            ResolutionError: If nothing says it, or what says it is absurd; it shows the override.
        """
        if isinstance(self._resolution, Resolution):
            return self._resolution.mpp
        raise ResolutionError(self.path, self._resolution.message)

    @property
    def size(self) -> Size:
        """Width and height of level 0, in its pixels."""
        return Size(self.levels[0].width, self.levels[0].height)

    def read_region(
        self, x: int, y: int, width: int, height: int, *, level: int = 0
    ) -> NDArray[np.uint8]:
        """Pixels of one rectangle of one level.

        The rectangle begins at the level's pixel nearest to the corner: column
        ``floor(x / downsample + 0.5)``, row likewise. Nothing is interpolated. What lies outside
        the slide is white, also when all of it does.

        Args:
            x: Left edge, level-0 pixels; may be negative or beyond the slide.
            y: Top edge, level-0 pixels; may be negative or beyond the slide.
            width: In pixels of ``level``, >= 1.
            height: In pixels of ``level``, >= 1.
            level: Index into ``levels``.

        Returns:
            (height, width, 3) uint8 RGB, which the caller may write to.

        Raises:
            ValueError: If the rectangle is empty or the slide has no such level.
            SlideError: If the pixels are damaged, or the slide has been closed.
        """
        if width < 1 or height < 1:
            msg = f"read_region needs width and height >= 1; got {width} x {height}."
            raise ValueError(msg)
        if not 0 <= level < len(self.levels):
            msg = (
                f"read_region needs a level from 0 to {len(self.levels) - 1}; got {level}. "
                f"See the levels of {self.path}."
            )
            raise ValueError(msg)
        self._refuse_if_closed()
        shape = self.levels[level]
        column = level_px(x, downsample=shape.downsample)
        row = level_px(y, downsample=shape.downsample)
        left, right = max(column, 0), min(column + width, shape.width)
        top, bottom = max(row, 0), min(row + height, shape.height)
        if left >= right or top >= bottom:
            return np.full((height, width, 3), WHITE, np.uint8)
        inside = self._read_inside(level, left, top, Size(right - left, bottom - top))
        if inside.shape[:2] == (height, width):
            return inside
        region = np.full((height, width, 3), WHITE, np.uint8)
        region[top - row : bottom - row, left - column : right - column] = inside
        return region

    @abstractmethod
    def _read_inside(self, level: int, left: int, top: int, size: Size) -> NDArray[np.uint8]:
        """A rectangle in pixels of ``level`` that lies wholly inside it, as a new RGB array."""

    @property
    @abstractmethod
    def associated(self) -> tuple[str, ...]:
        """Names of the pictures beside the pyramid, sorted: "label", "macro", "thumbnail"."""

    @abstractmethod
    def read_associated(self, name: str) -> NDArray[np.uint8]:
        """One of the ``associated`` pictures, whole, (height, width, 3) uint8 RGB.

        Raises:
            SlideError: If the slide has none of that name, or its pixels are damaged.
        """

    @property
    @abstractmethod
    def icc_profile(self) -> bytes | None:
        """The ICC colour profile of level 0 as it stands in the file; None without one."""

    def close(self) -> None:
        """Let go of the file. Reads that are under way in other threads end well."""
        self._is_closed = True

    def _refuse_if_closed(self) -> None:
        if self._is_closed:
            raise SlideError(self.path, "has been closed. Open it again with open_slide.")

    def _no_such_associated(self, name: str) -> SlideError:
        there = ", ".join(self.associated) or "none"
        return SlideError(self.path, f"has no associated picture {name!r}. It has: {there}.")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def levels_of(sizes: Sequence[Size]) -> tuple[Level, ...]:
    """Levels with their downsample, from their sizes.

    Writers reduce by a whole factor and cut or pad the last odd pixel, so a whole factor that
    explains both sizes to within a pixel is the true one (4443 px over 2221 px is 2, not
    2.00045: at the far edge the difference would be a pixel). Else the mean of the two ratios.

    Args:
        sizes: Pixel size of each level, finest first.
    """
    full = sizes[0]
    levels = []
    for size in sizes:
        downsample = (full.width / size.width + full.height / size.height) / 2
        whole = max(round(downsample), 1)
        fits_width = abs(full.width / whole - size.width) < 1
        fits_height = abs(full.height / whole - size.height) < 1
        if fits_width and fits_height:
            downsample = float(whole)
        levels.append(Level(size.width, size.height, downsample))
    return tuple(levels)


def _readers() -> dict[str, Callable[..., SlideReader]]:
    """The formats, in the order in which they are tried: a new one is one line here.

    Imported when a slide is opened: they implement the interface above, and bring the decoders.
    """
    from anlage.slides.image_reader import ImageReader
    from anlage.slides.openslide_reader import OpenSlideReader
    from anlage.slides.tiff_reader import TiffReader

    return {"tiled-tiff": TiffReader, "openslide": OpenSlideReader, "image": ImageReader}


def open_slide(path: str | Path, *, mpp: float | None = None) -> SlideReader:
    """Open a slide of any format that one of the readers knows.

    Args:
        path: The slide's file.
        mpp: Resolution of level 0 in micrometres per pixel, in place of what the file says:
            the catalogue's, or the user's.

    Returns:
        The slide, open; close it, or use it in a ``with`` block.

    Raises:
        SlideError: If there is no such file, it is damaged, or no reader knows it; then with
            the reason of each.
        ResolutionError: If ``mpp`` itself is absurd. A slide that does not say its resolution
            opens; its ``mpp`` raises.
    """
    file = Path(path)
    if file.is_dir():
        raise SlideError(path, "is a folder. Name the slide's file inside it.")
    if not file.exists():
        raise SlideError(path, "does not exist. Check the path.")
    if file.stat().st_size == 0:
        raise SlideError(path, "is empty (0 bytes). Copy it again from its source.")
    reasons = []
    for name, reader in _readers().items():
        try:
            return reader(str(path), mpp=mpp)
        except UnknownFormatError as error:
            reasons.append(f"{name}: {error.message}")
    raise SlideError(path, "no reader knows this file. " + " ".join(reasons))
