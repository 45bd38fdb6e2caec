"""Slides through OpenSlide: NDPI, MRXS, SCN and what else our own readers leave to it."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import openslide
from numpy.typing import NDArray
from openslide import lowlevel

from anlage.errors import SlideError
from anlage.geometry import Size
from anlage.slides.formats.image_reader import over_white
from anlage.slides.reader import SlideReader, UnknownFormatError, levels_of
from anlage.slides.resolution import Stated, find_resolution
from anlage.slides.storage.byte_source import SlideChangedError

CACHE_BYTES = 64 * 2**20


class _Shared:
    """The one cache of all slides, where OpenSlide's default is one for each; anew after a fork.

    A fork may fall into the moment in which another thread holds the lock of the cache or of a
    handle: a forked child that used them would wait for ever. So it opens its own, and keeps
    the parent's untouched, since to free them would take those locks as well.
    """

    def __init__(self) -> None:
        self.cache = openslide.OpenSlideCache(CACHE_BYTES)
        self.n_forks = 0
        self.lock = threading.Lock()
        self.of_parents: list[object] = []

    def renew(self) -> None:
        """In a forked child."""
        self.of_parents.append(self.cache)
        self.cache = openslide.OpenSlideCache(CACHE_BYTES)
        self.lock = threading.Lock()
        self.n_forks += 1


_SHARED = _Shared()
os.register_at_fork(after_in_child=_SHARED.renew)


class OpenSlideReader(SlideReader):
    """A slide read by OpenSlide.

    OpenSlide takes corners in whole level-0 pixels. On a level whose own downsample is not whole
    the nearest such corner can lie up to ``0.5 / downsample`` of a pixel beside ours, and OpenSlide
    then interpolates; on the others the pixels are the stored ones.

    An error makes an OpenSlide handle useless for good, so a read that fails is tried again on a
    fresh handle: it may have been another thread's error. If that fails too, the place is damaged.
    A handle on a file that took the slide's place in the meantime is refused.
    OpenSlide does not report every damage: a JPEG tile that ends early comes back partly grey.

    Args:
        path: The slide's file.
        mpp: Resolution of level 0, micrometres per pixel, in place of what the file says.

    Attributes:
        own_downsamples: OpenSlide's own factor of each level, the mean ratio of the two sides.

    Raises:
        UnknownFormatError: If OpenSlide does not know the file.
        SlideError: If OpenSlide knows the format and finds the file damaged.
    """

    reader: ClassVar[str] = "openslide"

    def __init__(self, path: str, *, mpp: float | None = None) -> None:
        slide = _open(path)
        properties = dict(slide.properties)
        sizes = [Size(*size) for size in slide.level_dimensions]
        super().__init__(
            path,
            vendor=properties.get("openslide.vendor", "unknown"),
            levels=levels_of(sizes),
            resolution=find_resolution(path, _stated(properties), override=mpp),
        )
        self.own_downsamples = tuple(slide.level_downsamples)
        self._native_tiles = [_native_tile(properties, i) for i in range(len(sizes))]
        self._associated = tuple(sorted(slide.associated_images))
        self._icc_profile = _icc_profile(slide)
        self._told = _told(slide)
        self._slide: Any = slide
        self._swap = threading.Lock()
        self._n_forks = _SHARED.n_forks

    @property
    def associated(self) -> tuple[str, ...]:
        """Names of the pictures beside the pyramid, sorted."""
        return self._associated

    @property
    def icc_profile(self) -> bytes | None:
        """The ICC profile of level 0; None without one."""
        return self._icc_profile

    def read_associated(self, name: str) -> NDArray[np.uint8]:
        """One of the ``associated`` pictures, whole, (height, width, 3) uint8 RGB."""
        self._refuse_if_closed()
        if name not in self._associated:
            raise self._no_such_associated(name)
        rgba = self._retried(
            lambda slide: np.asarray(slide.associated_images[name]),
            f"its associated picture {name!r}",
        )
        return over_white(rgba[..., :3], rgba[..., 3:])

    def close(self) -> None:
        """Let go of the handle; OpenSlide closes it when the last read has ended."""
        super().close()
        self._slide = None

    def native_tile(self, level: int) -> Size | None:
        """Pixels of the file's tiles, where OpenSlide says them."""
        return self._native_tiles[level]

    def _cuts_exactly(self, level: int) -> bool:
        return bool(self.own_downsamples[level] == round(self.own_downsamples[level]))

    def _read_inside(self, level: int, left: int, top: int, size: Size) -> NDArray[np.uint8]:
        downsample = self.own_downsamples[level]
        x, y = round(left * downsample), round(top * downsample)
        return self._retried(
            lambda slide: _pixels(slide, (x, y), level, size),
            f"{size.width} x {size.height} pixels of level {level} at column {left}, row {top}",
        )

    def _retried(self, read: Callable[[Any], NDArray[np.uint8]], what: str) -> NDArray[np.uint8]:
        if self._n_forks != _SHARED.n_forks:
            self._open_after_fork()
        used = self._slide
        if used is None:
            self._refuse_if_closed()
        try:
            return read(used)
        except openslide.OpenSlideError:
            fresh = self._opened_again()
        try:
            pixels = read(fresh)
        except openslide.OpenSlideError as error:
            raise SlideError(self.path, f"cannot read {what}: {error}.") from error
        self._replace(used, fresh)
        return pixels

    def _open_after_fork(self) -> None:
        """In a forked child, take a handle of its own."""
        with _SHARED.lock:
            if self._n_forks == _SHARED.n_forks:  # another thread was first
                return
            _SHARED.of_parents.append(self._slide)
            self._swap = threading.Lock()
            if self._slide is not None:
                self._slide = self._opened_again()
            self._n_forks = _SHARED.n_forks

    def _opened_again(self) -> Any:  # noqa: ANN401
        fresh = _open(self.path)
        if _told(fresh) != self._told:
            raise SlideChangedError(
                self.path, "has changed since it was opened. Open it again with open_slide."
            )
        return fresh

    def _replace(self, used: object, fresh: object) -> None:
        with self._swap:
            if self._slide is used:
                self._slide = fresh


def _open(path: str) -> Any:  # noqa: ANN401 - openslide has no types here
    try:
        slide = openslide.OpenSlide(path)
    except openslide.OpenSlideUnsupportedFormatError as error:
        raise UnknownFormatError(path, "not a format it knows.") from error
    except openslide.OpenSlideError as error:
        raise UnknownFormatError(path, f"{error}.") from error
    slide.set_cache(_SHARED.cache)
    return slide


def _told(slide: Any) -> tuple[object, ...]:  # noqa: ANN401
    """What tells a slide from another: its levels, and OpenSlide's hash of its smallest one."""
    return slide.level_dimensions, slide.properties.get("openslide.quickhash-1")


def _pixels(
    slide: Any,  # noqa: ANN401
    corner: tuple[int, int],
    level: int,
    size: Size,
) -> NDArray[np.uint8]:
    """Read into our own buffer: pre-multiplied BGRA, so that white under it is one addition."""
    premultiplied = np.empty((size.height, size.width, 4), np.uint8)
    pointer = premultiplied.ctypes.data_as(ctypes.POINTER(ctypes.c_uint32))
    lowlevel._read_region(slide._osr, pointer, *corner, level, size.width, size.height)
    rgb = premultiplied[..., 2::-1].copy()
    transparency = 255 - premultiplied[..., 3:]
    if transparency.any():
        rgb += transparency
    return rgb


def _stated(properties: Mapping[str, str]) -> Stated:
    mpp = (_number(properties, "openslide.mpp-x"), _number(properties, "openslide.mpp-y"))
    axes = None if mpp[0] is None or mpp[1] is None else (mpp[0], mpp[1])
    is_tiff_tag = properties.get("openslide.vendor") == "generic-tiff"
    return Stated(
        vendor=None if is_tiff_tag else axes,
        tiff=axes if is_tiff_tag else None,
        objective=_number(properties, "openslide.objective-power"),
    )


def _native_tile(properties: Mapping[str, str], level: int) -> Size | None:
    edges = [
        _number(properties, f"openslide.level[{level}].tile-{edge}") for edge in ("width", "height")
    ]
    width, height = edges
    return None if width is None or height is None else Size(int(width), int(height))


def _number(properties: Mapping[str, str], name: str) -> float | None:
    try:
        return float(properties[name])
    except (KeyError, ValueError):
        return None


def _icc_profile(slide: Any) -> bytes | None:  # noqa: ANN401
    size = slide.properties.get("openslide.icc-size")
    return lowlevel.read_icc_profile(slide._osr) if size else None
