"""The index of a TIFF, parsed once: which pictures it holds and where their tiles lie."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tifffile

from anlage.errors import SlideError
from anlage.slides.formats.philips_tiff import (
    PhilipsDescription,
    is_philips,
    philips_associated,
    philips_levels,
)
from anlage.slides.formats.tiff_metadata import stated_by, vendor_of
from anlage.slides.formats.tiff_pages import only_page, picture_of, refuse_giant_tiles
from anlage.slides.formats.tiled_picture import TiledPicture
from anlage.slides.reader import UnknownFormatError
from anlage.slides.resolution import Stated
from anlage.slides.storage.byte_source import ByteSource

SIZ_BYTES = 51  # of a JPEG 2000 of three components, up to the end of their description
STEPS_AT = 43  # there: every how many pixels a component has a sample, 3 bytes a component
LEFT_TO_OPENSLIDE = ("ndpi", "scn", "bif", "avs")  # pixels need more than their tiles


@dataclass(frozen=True)
class TiffIndex:
    """What our reader needs to know of a TIFF slide.

    Attributes:
        levels: The pyramid, finest first.
        associated: The pictures beside it by name; without those that are not 8-bit RGB.
        vendor: "aperio", "ome", "philips" or "generic-tiff".
        stated: What it says about its resolution.
        icc_profile: As it stands in the file.
    """

    levels: tuple[TiledPicture, ...]
    associated: dict[str, TiledPicture]
    vendor: str
    stated: Stated
    icc_profile: bytes | None


def read_tiff_index(source: ByteSource) -> TiffIndex:
    """Parse a TIFF's index; no pixel is read.

    A damaged index is refused for every reader: OpenSlide ends the whole process when it is
    asked for more memory than there is, which one wrong byte in a tile's size will do.

    Raises:
        UnknownFormatError: If it is none that we read; it says what it is.
        SlideError: If its index is damaged, or its pixels are not 8-bit colour.
    """
    path = source.path
    try:
        with source.as_file() as file, tifffile.TiffFile(file, **_dialect(file)) as tiff:
            index = _indexed(path, tiff)
        _refuse_coarse_colour(source, index.levels)
        return index
    except SlideError:
        raise
    except Exception as error:  # a damaged index makes tifffile fail in any way
        reason = f"its TIFF index is damaged ({type(error).__name__}: {error})."
        raise SlideError(path, reason) from error


def _dialect(file: Any) -> dict[str, Any]:  # noqa: ANN401 - as tifffile takes it
    """Whether a TIFF is none of Hamamatsu's, which tifffile goes by the name for.

    Theirs begin with an offset of 8 bytes where others have one of 4: one that lies within the
    file only as 4 is another's, whatever its name.
    """
    n_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(12)
    file.seek(0)
    if not head.startswith(b"II*\0"):
        return {}
    as_4, as_8 = (int.from_bytes(head[4 : 4 + width], "little") for width in (4, 8))
    return {"is_ndpi": False} if as_4 < n_bytes <= as_8 else {}


def _indexed(path: str, tiff: Any) -> TiffIndex:  # noqa: ANN401 - tifffile is untyped here
    first = tiff.pages.first
    if any(mark in str(first.description) for mark in ("<!DOCTYPE", "<!ENTITY")):
        # before tifffile parses it: entities could make it as large as they like
        raise SlideError(path, "needs a description without a DOCTYPE; it has one. Remove it.")
    refuse_giant_tiles(path, tiff)
    for name in LEFT_TO_OPENSLIDE:
        if getattr(tiff, f"is_{name}"):
            raise UnknownFormatError(path, f"{name} files are left to OpenSlide.")
    if str(first.software).startswith("MedScan"):
        raise UnknownFormatError(path, "Trestle files are left to OpenSlide.")
    if is_philips(first):
        return _philips(path, tiff)
    main = max(tiff.series, key=lambda series: math.prod(series.shape))
    pages = [only_page(path, tiff, level) for level in main.levels]
    if first.is_ome and len(pages) == 1:
        pages += _reduced_pages(tiff, pages[0])
    pages.sort(key=lambda page: -page.imagewidth)
    levels = [picture_of(path, page, f"level {i}") for i, page in enumerate(pages)]
    if first.is_svs and any((level.counts == 0).any() for level in levels):
        raise UnknownFormatError(
            path, "an Aperio file without some of its tiles: left to OpenSlide."
        )
    return TiffIndex(
        levels=tuple(levels),
        associated=_associated(path, tiff, main),
        vendor=vendor_of(first),
        stated=stated_by(pages[0]),
        icc_profile=_bytes(pages[0].iccprofile),
    )


def _refuse_coarse_colour(source: ByteSource, levels: Sequence[TiledPicture]) -> None:
    """Leave to OpenSlide what our decoder does not read: colour stored at half the width."""
    for level in levels:
        there = np.flatnonzero(level.counts >= SIZ_BYTES)
        if level.codec.kind == "jpeg2000-ycbcr" and len(there):
            head = source.read(level.offsets.item(there[0]), SIZ_BYTES)
            if head[STEPS_AT : STEPS_AT + 8 : 3] != b"\1\1\1":
                reason = "its JPEG 2000 holds colour at half the width: left to OpenSlide."
                raise UnknownFormatError(source.path, reason)


def _reduced_pages(tiff: Any, full: Any) -> list[Any]:  # noqa: ANN401
    """Pages beside the one that OME-XML names, which say that they are reduced copies of it."""
    found = []
    for page in (page.aspage() for page in tiff.pages):
        factor = round(full.imagewidth / max(page.imagewidth, 1))
        is_whole = factor > 1 and all(
            abs(extent / factor - reduced) < 1
            for extent, reduced in zip(full.shape[:2], page.shape[:2], strict=True)
        )
        if page.is_reduced and is_whole and page.shape[2:] == full.shape[2:]:
            found.append(page)
    return found


def _philips(path: str, tiff: Any) -> TiffIndex:  # noqa: ANN401
    first = tiff.pages.first
    described = PhilipsDescription(path, str(first.description))
    return TiffIndex(
        levels=tuple(philips_levels(path, tiff, described)),
        associated=philips_associated(path, tiff),
        vendor="philips",
        stated=Stated(vendor=described.mpp),
        icc_profile=_bytes(first.iccprofile),
    )


def _associated(path: str, tiff: Any, main: Any) -> dict[str, TiledPicture]:  # noqa: ANN401
    """The named pictures beside the pyramid that are 8-bit RGB as well."""
    found = {}
    for series in tiff.series:
        name = series.name.lower()
        if series is main or not name:
            continue
        try:
            found[name] = picture_of(path, only_page(path, tiff, series), name)
        except SlideError:
            continue
    return dict(sorted(found.items()))


def _bytes(value: object) -> bytes | None:
    return bytes(value) if isinstance(value, bytes | bytearray | np.ndarray) else None
