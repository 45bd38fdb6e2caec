"""Philips TIFF: levels padded to whole tiles, whose true sizes stand in an XML description."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from xml.etree import ElementTree as ET

from anlage.errors import SlideError
from anlage.geometry import Size
from anlage.slides.formats.tiff_pages import picture_of
from anlage.slides.formats.tiled_picture import TiledPicture
from anlage.slides.reader import UnknownFormatError
from anlage.slides.resolution import Axes

UM_PER_MM = 1000.0
ASSOCIATED = {"Label": "label", "Macro": "macro"}  # how the description of their page begins
IMAGE = "./Attribute[@Name='PIM_DP_SCANNED_IMAGES']/Array/DataObject"
LEVEL = (
    "./Attribute[@Name='PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE']/Array"
    "/DataObject[@ObjectType='PixelDataRepresentation']"
)
SPACING = "./Attribute[@Name='DICOM_PIXEL_SPACING']"


class PhilipsDescription:
    """What the XML of a Philips TIFF says of its pyramid.

    Attributes:
        spacings: (x, y) micrometres per pixel of each level, finest first.
        mpp: (x, y) of the scan.
    """

    def __init__(self, path: str, text: str) -> None:
        try:
            root = ET.fromstring(text.encode())  # noqa: S314 - no DOCTYPE: checked before
        except ET.ParseError as error:
            raise SlideError(path, f"is damaged: its description is no XML ({error}).") from error
        scans = [image for image in root.findall(IMAGE) if _kind(image) == "WSI"]
        if len(scans) != 1:
            raise SlideError(path, f"needs one scan in its description; got {len(scans)}.")
        self.spacings = [_spacing(path, level) for level in scans[0].findall(LEVEL)]
        own = scans[0].find(SPACING)
        self.mpp = self.spacings[0] if own is None and self.spacings else _spacing(path, scans[0])


def is_philips(page: Any) -> bool:  # noqa: ANN401 - a tifffile page
    """Whether a file whose first page this is was written by a Philips scanner's export."""
    description = str(page.description)
    return str(page.software).startswith("Philips") and 'ObjectType="DPUfsImport"' in description


def philips_levels(path: str, tiff: Any, described: PhilipsDescription) -> list[TiledPicture]:  # noqa: ANN401
    """The levels at their true sizes: level 0's, divided by whole downsamples and rounded down.

    Pages are written in whole tiles, and what lies beyond the true size is no part of the slide.
    The rule is OpenSlide's, whose levels these equal.

    Args:
        path: Named in the errors.
        tiff: The file, open in tifffile.
        described: Its description.

    Raises:
        SlideError: If the description does not fit the pages.
    """
    pages = [page for page in tiff.pages if page.is_tiled]
    if len(pages) != len(described.spacings):
        rule = f"needs a pixel spacing for each of {len(pages)} levels in its description"
        raise SlideError(path, f"{rule}; got {len(described.spacings)}. Export it again.")
    full = Size(pages[0].imagewidth, pages[0].imagelength)
    levels = []
    for i, (page, spacing) in enumerate(zip(pages, described.spacings, strict=True)):
        ratio = sum(a / b for a, b in zip(spacing, described.spacings[0], strict=True)) / 2
        downsample = max(round(ratio), 1)
        size = Size(full.width // downsample, full.height // downsample)
        levels.append(_cut(path, picture_of(path, page, f"level {i}"), size))
    return levels


def philips_associated(path: str, tiff: Any) -> dict[str, TiledPicture]:  # noqa: ANN401
    """Label and macro where they are pages; those inside the XML are left out."""
    found = {}
    for page in tiff.pages:
        name = next((n for b, n in ASSOCIATED.items() if str(page.description).startswith(b)), None)
        if name is None or page.is_tiled:
            continue
        try:
            found[name] = picture_of(path, page.aspage(), name)
        except SlideError:
            continue
    return dict(sorted(found.items()))


def _cut(path: str, picture: TiledPicture, size: Size) -> TiledPicture:
    """A picture without what lies to the right of and below its true size."""
    if min(size) < 1 or size.width > picture.size.width or size.height > picture.size.height:
        got = f"{picture.name} of {picture.size.width} x {picture.size.height}"
        rule = f"a page of at least {size.width} x {size.height}, as its description says"
        raise UnknownFormatError(path, f"needs {rule}; got {got}.")
    whole = (picture.n_down, picture.n_across)
    n_across, n_down = (-(-a // b) for a, b in zip(size, picture.tile, strict=True))
    if len(picture.offsets) != whole[0] * whole[1] or len(picture.counts) != len(picture.offsets):
        return picture  # its index is damaged, which is refused by name when the file is checked
    offsets, counts = (
        tiles.reshape(whole)[:n_down, :n_across].ravel()
        for tiles in (picture.offsets, picture.counts)
    )
    return replace(picture, size=size, offsets=offsets, counts=counts)


def _kind(image: ET.Element) -> str:
    return (image.findtext("./Attribute[@Name='PIM_DP_IMAGE_TYPE']") or "").strip()


def _spacing(path: str, element: ET.Element) -> Axes:
    """Row, then column spacing in millimetres, in quotes: ``"0.000227" "0.000227"``."""
    text = element.findtext(SPACING) or ""
    try:
        row, column = (float(number) for number in text.replace('"', " ").split())
        if not (row > 0 and column > 0):
            raise ValueError(text)
    except ValueError as error:
        rule = "needs two positive numbers as DICOM_PIXEL_SPACING"
        raise SlideError(path, f"{rule}; got {text[:80]!r}. Export it again.") from error
    return column * UM_PER_MM, row * UM_PER_MM
