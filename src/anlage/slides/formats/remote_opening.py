"""Opening a remote slide: TIFF and Deep Zoom where they lie, others from a copy on this machine."""

from __future__ import annotations

import weakref

from anlage.errors import SlideError
from anlage.slides.formats.dzi_reader import DeepZoomReader
from anlage.slides.formats.reader_table import readers
from anlage.slides.formats.tiff_reader import TiffReader
from anlage.slides.reader import SlideReader, UnknownFormatError, first_that_opens
from anlage.slides.storage.location import suffix_of
from anlage.slides.storage.object_store import RemoteBytes
from anlage.slides.storage.staging import stage

DEEP_ZOOM = ".dzi"
MANY_FILES = {  # formats of which a location names only the first file
    ".mrxs": "a folder of data files beside it",
    ".vms": "several files",
    ".vmu": "several files",
    ".dcm": "a folder of files, one a level",
}


def open_remote(
    location: str, *, mpp: float | None, version: str | None, size: int | None
) -> SlideReader:
    """Open a slide by its URL.

    Args:
        location: Its URL.
        mpp: As for ``open_slide``.
        version: As for ``open_slide``.
        size: As for ``open_slide``.

    Raises:
        SlideError: As ``open_slide``; and if it is of a format of many files.
    """
    parts = MANY_FILES.get(suffix_of(location))
    if parts is not None:
        raise SlideError(
            location,
            f"is a slide of {parts}, which is read from a local disk only. Copy all of it to this "
            "machine, or convert it to a pyramidal TIFF.",
        )
    if suffix_of(location) == DEEP_ZOOM:
        return _open_deep_zoom(location, mpp=mpp, version=version, size=size)
    try:
        return TiffReader(location, mpp=mpp, version=version, size=size)
    except UnknownFormatError as error:
        reason = error.message
    return _open_staged(location, reason, mpp=mpp, version=version, size=size)


def _open_deep_zoom(
    location: str, *, mpp: float | None, version: str | None, size: int | None
) -> SlideReader:
    source = RemoteBytes(location, version=version, size=size)
    source.read(0, min(source.size, 1))  # refused if it is not the catalogue's
    slide = DeepZoomReader(location, mpp=mpp)
    slide.version = source.version
    return slide


def _open_staged(
    location: str, reason: str, *, mpp: float | None, version: str | None, size: int | None
) -> SlideReader:
    source = RemoteBytes(location, version=version, size=size)
    staged = stage(source)
    others = ((name, reader) for name, reader in readers() if reader is not TiffReader)
    try:
        slide = first_that_opens(str(staged.path), others, mpp=mpp)
    except BaseException as error:
        staged.release()
        if not isinstance(error, SlideError):
            raise
        message = error.message.replace(
            "knows this file.", f"knows this file. tiled-tiff: {reason}"
        )
        raise SlideError(location, message) from error
    slide.version = source.version
    weakref.finalize(slide, staged.release)  # from then on it may be removed to make room
    return slide
