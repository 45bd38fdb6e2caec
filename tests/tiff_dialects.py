"""TIFF slides as scanners and converters write them, with known pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from synthetic_slides import TILE

APERIO = (
    "Aperio Image Library v12.0.0\r\n{width}x{height} ({tile}) J2K|AppMag = 40|MPP = {mpp}|Left = 1"
)
YCBCR_OF_RGB = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
)


def tiles_of(picture: np.ndarray, tile: tuple[int, int] = TILE) -> list[np.ndarray]:
    """The tiles of a picture, row by row, those at its edges filled up with zeros."""
    rows, columns = (-(-extent // edge) for extent, edge in zip(picture.shape, tile, strict=False))
    padded = np.zeros((rows * tile[0], columns * tile[1], 3), np.uint8)
    padded[: picture.shape[0], : picture.shape[1]] = picture
    return [
        np.ascontiguousarray(block)
        for row in np.split(padded, rows)
        for block in np.split(row, columns, axis=1)
    ]


def jpeg2000(tile: np.ndarray) -> bytes:
    """Lossless, as Aperio's 33005 holds it."""
    return bytes(imagecodecs.jpeg2k_encode(tile, level=0, codecformat="j2k"))


def jpeg2000_of_ycbcr(tile: np.ndarray) -> bytes:
    """Lossless YCbCr that does not say so, as Aperio's 33003 holds it."""
    ycbcr = tile.astype(float) @ YCBCR_OF_RGB.T + [0, 128, 128]
    rounded = np.clip(np.rint(ycbcr), 0, 255).astype(np.uint8)
    return bytes(imagecodecs.jpeg2k_encode(rounded, level=0, codecformat="j2k", mct=False))


def write_svs(
    path: Path,
    levels: Sequence[np.ndarray],
    *,
    thumbnail: np.ndarray,
    label: np.ndarray,
    macro: np.ndarray,
    mpp: float = 0.2503,
    encode: Callable[[np.ndarray], bytes] | None = None,
    **how: Any,
) -> Path:
    """An Aperio file: level 0, thumbnail in strips, the other levels, label and macro in strips.

    Args:
        path: Where to.
        levels: The pyramid, finest first.
        thumbnail: The second page.
        label: Stored as LZW, as Aperio does.
        macro: Stored as JPEG.
        mpp: In the description.
        encode: Makes the bytes of a tile, where tifffile cannot; ``how`` then names the code.
        how: For tifffile: compression and so on, of the levels.
    """
    height, width = levels[0].shape[:2]
    text = APERIO.format(width=width, height=height, tile=f"{TILE[1]}x{TILE[0]}", mpp=mpp)
    strips: dict[str, Any] = {"photometric": "rgb", "metadata": None, "rowsperstrip": 16}
    with tifffile.TiffWriter(path) as writer:
        for i, level in enumerate(levels):
            settings = {"photometric": "rgb", "tile": TILE, "metadata": None, **how}
            if encode is not None:
                settings |= {"shape": level.shape, "dtype": np.uint8}
            data = level if encode is None else (encode(tile) for tile in tiles_of(level))
            writer.write(data, description=text, **settings)
            if i == 0:
                writer.write(thumbnail, description=text, compression="jpeg", **strips)
        writer.write(label, description="Aperio\nlabel", subfiletype=1, **strips)
        writer.write(macro, description="Aperio\nmacro", subfiletype=9, **strips)
    return path


PHILIPS = """<?xml version="1.0" encoding="UTF-8" ?>
<DataObject ObjectType="DPUfsImport">
<Attribute Name="PIM_DP_SCANNED_IMAGES" Group="0x301D" Element="0x1003" PMSVR="IDataObjectArray">
<Array><DataObject ObjectType="DPScannedImage">
<Attribute Name="PIM_DP_IMAGE_TYPE" PMSVR="IString">WSI</Attribute>
<Attribute Name="DICOM_PIXEL_SPACING" PMSVR="IDoubleArray">"{mm}" "{mm}"</Attribute>
<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE" PMSVR="IDataObjectArray"><Array>
{levels}
</Array></Attribute></DataObject></Array></Attribute></DataObject>
"""
PHILIPS_LEVEL = """<DataObject ObjectType="PixelDataRepresentation">
<Attribute Name="DICOM_PIXEL_SPACING" PMSVR="IDoubleArray">"{mm}" "{mm}"</Attribute>
<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_NUMBER" PMSVR="IUInt16">{i}</Attribute>
</DataObject>"""


def write_philips(
    path: Path,
    levels: Sequence[np.ndarray],
    *,
    label: np.ndarray,
    macro: np.ndarray,
    mpp: float = 0.25,
    edge: int = 64,
    description: str | None = None,
    **how: Any,
) -> Path:
    """A Philips file: every page but the first padded with black to whole tiles, XML in the first.

    Args:
        path: Where to.
        levels: The pyramid at its true sizes, each half of the one before, finest first.
        label: A page in strips.
        macro: A page in strips.
        mpp: Micrometres per pixel of level 0.
        edge: Of the tiles, pixels.
        description: In place of the right one.
        how: For tifffile: compression and so on, of the levels.
    """
    mm = mpp / 1000
    parts = [PHILIPS_LEVEL.format(mm=f"{mm * 2**i:.9f}", i=i) for i in range(len(levels))]
    text = PHILIPS.format(mm=f"{mm:.9f}", levels="\n".join(parts))
    settings: dict[str, Any] = {"photometric": "rgb", "metadata": None, **how}
    strips: dict[str, Any] = {"photometric": "rgb", "metadata": None, "rowsperstrip": 16}
    with tifffile.TiffWriter(path) as writer:
        for i, level in enumerate(levels):
            width, height = (-(-extent // edge) * edge for extent in level.shape[1::-1])
            padded = np.zeros((height, width, 3), np.uint8)
            padded[: level.shape[0], : level.shape[1]] = level
            writer.write(
                padded,
                tile=(edge, edge),
                software="Philips DP v1.0" if i == 0 else False,
                description=(text if description is None else description) if i == 0 else None,
                subfiletype=int(i > 0),
                **settings,
            )
        writer.write(macro, description="Macro -offset=(0,0)", **strips)
        writer.write(label, description="Label -size=(1,1)", **strips)
    return path


def write_cog(path: Path, levels: Sequence[np.ndarray], *, mpp: float = 0.5, **how: Any) -> Path:
    """A cloud optimized GeoTIFF as GDAL writes it: a mask behind each picture, GDAL's metadata."""
    metadata = '<GDALMetadata><Item name="OVERVIEW_RESAMPLING">AVERAGE</Item></GDALMetadata>'
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for i, level in enumerate(levels):
            per_cm = 1e4 / (mpp * 2**i)
            writer.write(
                level,
                subfiletype=int(i > 0),
                photometric=how.get("photometric", "rgb"),
                tile=(64, 64),
                metadata=None,
                compression=how.get("compression"),
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                extratags=[(42112, 2, 0, metadata, True)] if i == 0 else [],
            )
            mask = np.ones(level.shape[:2], bool)
            writer.write(mask, subfiletype=4 + int(i > 0), photometric="mask", metadata=None)
    return path
