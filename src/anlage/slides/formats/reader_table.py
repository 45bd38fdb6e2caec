"""Which readers there are, and the order in which a slide is offered to them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from anlage.errors import SlideError
from anlage.slides.reader import SlideReader, UnknownFormatError

PLUG_INS = "anlage.slide_readers"  # the entry point group of readers that others install
Opener = Callable[..., SlideReader]
log = logging.getLogger(__name__)


def readers() -> Iterator[tuple[str, Opener]]:
    """Name and class of every reader, in the order in which they are tried.

    Ours come first: they refuse damage that others would deliver as pixels, and what they read
    does not depend on what else is installed. Those of others come before OpenSlide, which
    knows many formats and may end the whole process over a damaged file of one; hence DICOM
    stands before it as well. Pictures come last. Imported when a slide is opened.
    """
    from anlage.slides.formats.dicom_reader import DicomReader
    from anlage.slides.formats.dzi_reader import DeepZoomReader
    from anlage.slides.formats.image_reader import ImageReader
    from anlage.slides.formats.openslide_reader import OpenSlideReader
    from anlage.slides.formats.tiff_reader import TiffReader

    yield "tiled-tiff", TiffReader
    yield "deep-zoom", DeepZoomReader
    yield "dicom", DicomReader
    yield from plug_ins().items()
    yield "openslide", OpenSlideReader
    yield "image", ImageReader


@cache
def plug_ins() -> dict[str, Opener]:
    """The readers that others have installed, by the name of their entry point, sorted.

    One that cannot be imported takes part all the same: it declines every slide, and says why.
    """
    found = sorted(entry_points(group=PLUG_INS), key=lambda point: point.name)
    return {point.name: _loaded(point) for point in found}


def plug_in_suffixes() -> frozenset[str]:
    """Endings of file names, lower case, that the readers of others ask to be searched for."""
    return frozenset(
        str(suffix).lower() for plug_in in plug_ins().values() for suffix in _suffixes(plug_in)
    )


def _suffixes(plug_in: Opener) -> tuple[str, ...]:
    return tuple(getattr(plug_in, "suffixes", ()))


def _loaded(point: EntryPoint) -> Opener:
    try:
        reader = point.load()
        if not (isinstance(reader, type) and issubclass(reader, SlideReader)):
            return _declining(f"{point.value} is no subclass of SlideReader.")
    except Exception as error:  # noqa: BLE001 - somebody else's code may fail in any way
        return _declining(f"{point.value} cannot be imported ({_described(error)}).")

    def opener(path: str, **how: Any) -> SlideReader:  # noqa: ANN401
        try:
            opened: SlideReader = reader(path, **how)
        except SlideError:
            raise
        except Exception as error:
            reason = f"{point.value} failed ({_described(error)})."
            log.warning("%s: the reader %s of another package: %s", path, point.name, reason)
            raise UnknownFormatError(path, reason) from error
        return opened

    opener.suffixes = reader.suffixes  # type: ignore[attr-defined]
    return opener


def _declining(reason: str) -> Opener:
    log.warning("A reader of another package cannot be used: %s", reason)

    def decline(path: str, **_: Any) -> SlideReader:  # noqa: ANN401
        raise UnknownFormatError(path, reason)

    return decline


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
