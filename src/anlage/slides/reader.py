"""The one interface to a slide, whatever its file format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from anlage.errors import ResolutionError, SlideError
from anlage.geometry import Size, level_px
from anlage.slides.formats.tiled_picture import TiledPicture
from anlage.slides.rectangle import Outcome, Rectangle
from anlage.slides.resolution import Resolution
from anlage.slides.shared_reads import read_together
from anlage.slides.storage.byte_source import ByteSource
from anlage.slides.storage.location import is_remote


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
        reader: Name of the kind of reader: "tiled-tiff", "openslide", "image" and so on.
        suffixes: Endings of file names to find such slides in folders by; only of readers that
            another package brings, since ours are in ``discovery``.
        path: The file, as it was given.
        version: Changes when the file does: a remote slide's ETag; "" where it is not known.
        vendor: Who wrote the format, e.g. "aperio", "generic-tiff", "png".
        levels: The pyramid, finest first; never empty.
        resolution: Micrometres per level-0 pixel and where that came from; None if nothing
            usable says it (then ``mpp`` says why).
    """

    reader: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        path: str,
        *,
        vendor: str,
        levels: Sequence[Level],
        resolution: Resolution | ResolutionError,
    ) -> None:
        self.path = path
        self.version = ""
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

    def native_tile(self, level: int) -> Size | None:
        """Pixels of the tiles that the file stores a level in; None where that is not known."""
        return None

    def tiled_picture(self, level: int) -> tuple[TiledPicture, ByteSource] | None:
        """The encoded tiles of a level and the file they lie in; None if only its reader knows."""
        return None

    def reductions(self, level: int) -> tuple[int, ...]:
        """Factors at which the decoder itself can reduce a level, smallest first; 1 is one."""
        return (1,)

    def read_region(
        self, x: int, y: int, width: int, height: int, *, level: int = 0, reduce: int = 1
    ) -> NDArray[np.uint8]:
        """Pixels of one rectangle of one level.

        The rectangle begins at the level's pixel nearest to the corner: column
        ``floor(x / downsample + 0.5)``, row likewise. Nothing is interpolated. What lies outside
        the slide is white, also when all of it does. A reduced level is a level like the others,
        with ``reduce`` times the downsample; a last pixel that is not whole is outside.

        Args:
            x: Left edge, level-0 pixels; may be negative or beyond the slide.
            y: Top edge, level-0 pixels; may be negative or beyond the slide.
            width: In pixels of ``level`` reduced, >= 1.
            height: In pixels of ``level`` reduced, >= 1.
            level: Index into ``levels``.
            reduce: One of the level's ``reductions``.

        Returns:
            (height, width, 3) uint8 RGB, which the caller may write to.

        Raises:
            ValueError: If the rectangle is empty or the slide has no such level or reduction.
            SlideError: If the pixels are damaged, or the slide has been closed.
        """
        size = self._size_of(level, reduce)
        downsample = self.levels[level].downsample * reduce
        column, row = level_px(x, downsample=downsample), level_px(y, downsample=downsample)
        place = _not_empty(Rectangle(column, row, width, height))
        part = place.inside(size)
        if part is None:
            return place.on_white(None, None)
        return place.on_white(self._read_part(level, part, reduce), part)

    def start_regions(
        self, places: Sequence[Rectangle], *, level: int = 0, reduce: int = 1
    ) -> Callable[[], Iterator[tuple[int, Outcome]]]:
        """Begin to read several rectangles of one level, sharing the work where they overlap.

        Args:
            places: Rectangles in pixels of ``level`` reduced, each as for ``read_region``.
            level: Index into ``levels``.
            reduce: One of the level's ``reductions``.

        Returns:
            A function that reads on: it gives, in any order, the number of each rectangle and
            its pixels as ``read_region`` does, or the error that this one rectangle met. The
            bytes of a remote slide are on their way before it is called.

        Raises:
            ValueError: As for ``read_region``.
            SlideError: If the slide has been closed.
        """
        size = self._size_of(level, reduce)
        parts = [_not_empty(place).inside(size) for place in places]
        numbers = [number for number, part in enumerate(parts) if part is not None]
        read_parts = self._start_parts(level, [part for part in parts if part is not None], reduce)

        def read() -> Iterator[tuple[int, Outcome]]:
            for number, (place, part) in enumerate(zip(places, parts, strict=True)):
                if part is None:
                    yield number, place.on_white(None, None)
            for found, outcome in read_parts():
                number = numbers[found]
                if isinstance(outcome, SlideError):
                    yield number, outcome
                else:
                    yield number, places[number].on_white(outcome, parts[number])

        return read

    @abstractmethod
    def _read_inside(self, level: int, left: int, top: int, size: Size) -> NDArray[np.uint8]:
        """A rectangle in pixels of ``level`` that lies wholly inside it, as a new RGB array."""

    def _read_part(self, level: int, part: Rectangle, reduce: int) -> NDArray[np.uint8]:
        """As ``_read_inside``, of the level reduced; readers with ``reductions`` have their own."""
        return self._read_inside(level, part.left, part.top, Size(part.width, part.height))

    def _start_parts(
        self, level: int, parts: Sequence[Rectangle], reduce: int
    ) -> Callable[[], Iterator[tuple[int, Outcome]]]:
        """As ``start_regions``, for rectangles wholly inside; a reader may know a better way."""
        is_exact = self._cuts_exactly(level)
        return lambda: read_together(
            lambda part: self._read_part(level, part, reduce), parts, is_exact=is_exact
        )

    def _cuts_exactly(self, level: int) -> bool:
        """Whether a part of what is read at a level is what reading that part gives."""
        return True

    def _size_of(self, level: int, reduce: int) -> Size:
        """Size of a level reduced, once the slide is seen to be open and to have it."""
        if not 0 <= level < len(self.levels):
            msg = (
                f"read_region needs a level from 0 to {len(self.levels) - 1}; got {level}. "
                f"See the levels of {self.path}."
            )
            raise ValueError(msg)
        self._refuse_if_closed()
        if reduce != 1 and reduce not in self.reductions(level):
            there = ", ".join(map(str, self.reductions(level)))
            msg = (
                f"read_region needs one of the reductions of level {level}, which are {there}; "
                f"got {reduce}. See the reductions of {self.path}."
            )
            raise ValueError(msg)
        return Size(self.levels[level].width // reduce, self.levels[level].height // reduce)

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


def _not_empty(place: Rectangle) -> Rectangle:
    if place.width < 1 or place.height < 1:
        msg = f"read_region needs width and height >= 1; got {place.width} x {place.height}."
        raise ValueError(msg)
    return place


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


def refuse_unless_one_pyramid(path: str, levels: Sequence[Level]) -> None:
    """Refuse levels of which one cannot be another reduced, since their shapes differ.

    Raises:
        UnknownFormatError: If a level is higher or lower than its width says, by 1 % and 2 pixels.
    """
    full = levels[0]
    for level in levels:
        height = full.height / full.width * level.width
        if abs(height - level.height) > max(2, 0.01 * height):
            raise UnknownFormatError(
                path,
                f"needs levels of one shape; got {full.width} x {full.height} and "
                f"{level.width} x {level.height}.",
            )


def open_slide(
    location: str | Path,
    *,
    mpp: float | None = None,
    version: str | None = None,
    size: int | None = None,
) -> SlideReader:
    """Open a slide of any format that one of the readers knows, local or remote.

    TIFF slides are read where they are, by ranged requests; other formats are copied to a folder
    of this machine first (``staging``).

    Args:
        location: The slide's file, or its URL (``s3://``, ``gs://``, ``az://``, ``https://``).
        mpp: Resolution of level 0 in micrometres per pixel, in place of what the file says:
            the catalogue's, or the user's.
        version: Of a remote slide, as the catalogue says it: no other is read.
        size: Length of a remote slide in bytes, likewise; with both no request is made here if
            the slide has been opened on this machine before.

    Returns:
        The slide, open; close it, or use it in a ``with`` block.

    Raises:
        SlideError: If there is no such file, it is damaged, or no reader knows it; then with
            the reason of each.
        ResolutionError: If ``mpp`` itself is absurd. A slide that does not say its resolution
            opens; its ``mpp`` raises.
    """
    if is_remote(str(location)):
        from anlage.slides.formats.remote_opening import open_remote

        return open_remote(str(location), mpp=mpp, version=version, size=size)
    file = Path(location)
    if file.is_dir():
        raise SlideError(location, "is a folder. Name the slide's file inside it.")
    if not file.exists():
        raise SlideError(location, "does not exist. Check the path.")
    if file.stat().st_size == 0:
        raise SlideError(location, "is empty (0 bytes). Copy it again from its source.")
    from anlage.slides.formats.reader_table import readers  # they implement the interface above

    return first_that_opens(str(location), readers(), mpp=mpp)


def first_that_opens(
    path: str, readers: Iterable[tuple[str, Callable[..., SlideReader]]], *, mpp: float | None
) -> SlideReader:
    """A local slide by the first reader that knows its format.

    Args:
        path: The slide's file.
        readers: Name and opener of each.
        mpp: As for ``open_slide``.

    Raises:
        SlideError: If one of them finds it damaged, or none knows it.
    """
    reasons = []
    for name, reader in readers:
        try:
            return reader(path, mpp=mpp)
        except UnknownFormatError as error:
            reasons.append(f"{name}: {error.message}")
    raise SlideError(path, "no reader knows this file. " + " ".join(reasons))
