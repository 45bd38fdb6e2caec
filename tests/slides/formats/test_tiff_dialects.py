"""Every dialect of TIFF against what was written, and against OpenSlide where it opens it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile
from synthetic_slides import halved, overwrite_tile, pyramid, tissue_like, write_tiff
from tiff_dialects import (
    jpeg2000,
    jpeg2000_of_ycbcr,
    write_cog,
    write_philips,
    write_svs,
)

from anlage.errors import SlideError
from anlage.slides.formats.openslide_reader import OpenSlideReader
from anlage.slides.formats.philips_tiff import PhilipsDescription
from anlage.slides.formats.tiff_reader import TiffReader
from anlage.slides.reader import SlideReader, UnknownFormatError, open_slide

LABEL, MACRO = tissue_like(61, 50, seed=1), tissue_like(120, 52, seed=2)
THUMBNAIL = tissue_like(100, 70, seed=3)
WAYS: dict[str, dict[str, Any]] = {
    "jpeg": {"compression": "jpeg", "photometric": "ycbcr", "subsampling": (2, 2)},
    "jpeg-rgb": {"compression": "jpeg", "photometric": "rgb"},
    "33003": {"compression": 33003, "encode": jpeg2000_of_ycbcr},
    "33005": {"compression": 33005, "encode": jpeg2000},
    "lzw": {"compression": "lzw"},
}


def whole(slide: SlideReader, level: int = 0) -> np.ndarray:
    shape = slide.levels[level]
    return slide.read_region(0, 0, shape.width, shape.height, level=level)


def stored(path: Path, level: int = 0) -> np.ndarray:
    """What tifffile decodes a level to."""
    with tifffile.TiffFile(path) as tiff:
        return np.asarray(tiff.series[0].levels[level].asarray())


def furthest(a: np.ndarray, b: np.ndarray) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b).max())


def agree(path: Path) -> None:
    """Both readers say the same of one file, pixel for pixel on levels of whole downsample."""
    with TiffReader(str(path)) as native, OpenSlideReader(str(path)) as other:
        for name in ("levels", "vendor", "resolution", "associated"):
            assert getattr(native, name) == getattr(other, name), name
        for i, downsample in enumerate(other.own_downsamples):
            if downsample == round(downsample):
                assert furthest(whole(native, i), whole(other, i)) <= 1
        for name in native.associated:
            pictures = [slide.read_associated(name) for slide in (native, other)]
            assert furthest(*pictures) <= 1


@pytest.mark.parametrize("way", WAYS)
def test_aperio(tmp_path: Path, way: str) -> None:
    levels = pyramid(501, 334)
    path = write_svs(
        tmp_path / "a.svs", levels, thumbnail=THUMBNAIL, label=LABEL, macro=MACRO, **WAYS[way]
    )
    agree(path)
    with open_slide(path) as slide:
        assert (slide.reader, slide.vendor, slide.mpp) == ("tiled-tiff", "aperio", 0.2503)
        assert slide.associated == ("label", "macro", "thumbnail")
        assert np.array_equal(slide.read_associated("label"), LABEL)
        for i, level in enumerate(levels):
            expected = stored(path, i) if "jpeg" in way else level
            assert furthest(whole(slide, i), expected) <= (2 if way == "33003" else "jpeg" in way)


def test_colour_at_half_the_width_is_left_to_openslide(tmp_path: Path) -> None:
    path = write_svs(
        tmp_path / "a.svs",
        pyramid(501, 334),
        thumbnail=THUMBNAIL,
        label=LABEL,
        macro=MACRO,
        **WAYS["33003"],
    )
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages.first.dataoffsets[0]
    data = bytearray(path.read_bytes())
    assert data[offset + 40 : offset + 51] == b"\0\3" + b"\7\1\1" * 3
    data[offset + 46], data[offset + 49] = 2, 2  # a sample of Cb and Cr every second column
    path.write_bytes(data)
    with pytest.raises(UnknownFormatError, match="left to OpenSlide"):
        TiffReader(str(path))
    assert open_slide(path).reader == "openslide"


@pytest.mark.parametrize("compression", ["webp", "jpegxl", "jpeg", "deflate", "lzw", None])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("is_big", [False, True])
def test_compressions_in_both_byte_orders(
    tmp_path: Path, compression: str | None, order: Any, is_big: bool
) -> None:
    picture = tissue_like(333, 247)
    path = tmp_path / "a.tiff"
    how: dict[str, Any] = {"webp": {"level": -1}, "jpegxl": {"lossless": True}}
    with tifffile.TiffWriter(path, byteorder=order, bigtiff=is_big) as writer:
        writer.write(
            picture,
            photometric="rgb",
            tile=(64, 112),
            compression=compression,
            compressionargs=how.get(compression or ""),
            metadata=None,
        )
    with TiffReader(str(path)) as slide:
        assert furthest(whole(slide), stored(path)) <= (compression == "jpeg")
        if compression != "jpeg":
            assert np.array_equal(whole(slide), picture)


@pytest.mark.parametrize("photometric", ["rgb", "ycbcr"])
@pytest.mark.parametrize("compression", ["jpeg", "deflate"])
def test_cloud_optimized_geotiff(tmp_path: Path, compression: str, photometric: str) -> None:
    if photometric == "ycbcr" and compression != "jpeg":
        photometric = "rgb"
    levels = pyramid(500, 332)
    path = write_cog(tmp_path / "a.tif", levels, compression=compression, photometric=photometric)
    agree(path)
    with open_slide(path) as slide:
        assert [level.downsample for level in slide.levels] == [1, 2, 4]
        assert (slide.mpp, slide.associated) == (pytest.approx(0.5), ())
        for i, level in enumerate(levels):
            expected = stored(path, i) if compression == "jpeg" else level
            assert furthest(whole(slide, i), expected) <= (compression == "jpeg")


@pytest.fixture
def philips_levels() -> list[np.ndarray]:
    levels = [tissue_like(640, 448)]  # whole tiles, as the first page always is
    for _ in range(3):
        levels.append(halved(levels[-1]))
    return levels


@pytest.mark.parametrize("compression", ["jpeg", None])
def test_philips(tmp_path: Path, philips_levels: list[np.ndarray], compression: str | None) -> None:
    path = write_philips(
        tmp_path / "a.tiff", philips_levels, label=LABEL, macro=MACRO, compression=compression
    )
    assert openslide.OpenSlide.detect_format(path) == "philips"
    agree(path)
    with open_slide(path) as slide, tifffile.TiffFile(path) as tiff:
        assert (slide.reader, slide.vendor) == ("tiled-tiff", "philips")
        assert slide.mpp == pytest.approx(0.25)
        assert slide.resolution is not None
        assert slide.resolution.source == "vendor"
        padded = [(page.imagewidth, page.imagelength) for page in list(tiff.pages)[:4]]
        assert padded == [(640, 448), (320, 256), (192, 128), (128, 64)]
        sizes = [(level.width, level.height, level.downsample) for level in slide.levels]
        assert sizes == [(640, 448, 1), (320, 224, 2), (160, 112, 4), (80, 56, 8)]
        assert slide.associated == ("label", "macro")
        assert np.array_equal(slide.read_associated("label"), LABEL)
        for i, level in enumerate(philips_levels):
            assert np.abs(whole(slide, i).astype(int) - level).mean() < (
                10 if compression else 1e-9
            )


def test_the_spacing_of_rows_stands_first_in_philips(
    tmp_path: Path, philips_levels: list[np.ndarray]
) -> None:
    path = write_philips(tmp_path / "a.tiff", philips_levels, label=LABEL, macro=MACRO)
    with tifffile.TiffFile(path) as tiff:
        text = tiff.pages.first.description
    text = text.replace('"0.000250000" "0.000250000"', '"0.000250000" "0.000500000"')
    described = PhilipsDescription("a", text)
    assert described.mpp == pytest.approx((0.5, 0.25))
    assert described.spacings[:2] == [pytest.approx((0.5, 0.25)), pytest.approx((0.5, 0.5))]


def leave_out(path: Path, *, page: int, tiles: Sequence[int]) -> None:
    """Make tiles of a page missing, as in a sparse file."""
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        for name in ("TileOffsets", "TileByteCounts"):
            tag = tiff.pages[page].tags[name]
            tag.overwrite([0 if i in tiles else value for i, value in enumerate(tag.value)])


def test_tiles_that_philips_left_out_are_white(
    tmp_path: Path, philips_levels: list[np.ndarray]
) -> None:
    path = write_philips(tmp_path / "a.tiff", philips_levels, label=LABEL, macro=MACRO)
    leave_out(path, page=1, tiles=[0, 6])  # of 5 x 4
    agree(path)
    expected = philips_levels[1].copy()
    expected[:64, :64] = 255
    expected[64:128, 64:128] = 255
    with TiffReader(str(path)) as slide:
        assert np.array_equal(whole(slide, 1), expected)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('"0.001000000"', '"x"', 'DICOM_PIXEL_SPACING; got \'"x"'),
        ('"0.001000000"', '"-1"', "two positive numbers"),
        (">WSI<", ">LABELIMAGE<", "needs one scan in its description; got 0"),
        ("<Array>", "<Aray>", "is no XML"),
        ("<?xml", "<!DOCTYPE a><?xml", "without a DOCTYPE"),
        ("PixelDataRepresentation", "Other", "for each of 4 levels in its description; got 0"),
    ],
)
def test_a_philips_description_that_does_not_fit(
    tmp_path: Path, philips_levels: list[np.ndarray], old: str, new: str, why: str
) -> None:
    path = write_philips(tmp_path / "a.tiff", philips_levels, label=LABEL, macro=MACRO)
    with tifffile.TiffFile(path) as tiff:
        text = tiff.pages.first.description
    assert old in text
    path = write_philips(
        path, philips_levels, label=LABEL, macro=MACRO, description=text.replace(old, new)
    )
    with pytest.raises(SlideError, match=why) as refusal:
        open_slide(path)
    assert not isinstance(refusal.value, UnknownFormatError)


def test_a_cut_tile_of_philips_is_named(tmp_path: Path, philips_levels: list[np.ndarray]) -> None:
    path = write_philips(
        tmp_path / "a.tiff", philips_levels, label=LABEL, macro=MACRO, compression="jpeg"
    )
    overwrite_tile(path, page=1, tile=6, data=None)
    with open_slide(path) as slide:
        with pytest.raises(SlideError, match="level 1, tile row 1, column 1 "):
            whole(slide, 1)
        whole(slide, 0)


def other_pixels() -> Iterator[tuple[str, np.ndarray, dict[str, Any], str]]:
    grey, colour = np.zeros((247, 333), np.uint8), np.zeros((247, 333, 3), np.uint8)
    four = np.zeros((247, 333, 4), np.uint8)
    yield "16-bit", colour.astype(np.uint16), {}, "RGB uint16"
    yield "float", colour.astype(np.float32), {}, "RGB float32"
    yield "grey", grey, {"photometric": "minisblack"}, "MINISBLACK uint8"
    yield "inverted", grey, {"photometric": "miniswhite"}, "MINISWHITE uint8"
    yield "16-bit grey", grey.astype(np.uint16), {"photometric": "minisblack"}, "uint16"
    palette = {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)}
    yield "palette", grey, palette, "PALETTE uint8"
    yield "alpha", four, {"extrasamples": ["unassalpha"]}, r"RGB uint8 of shape \(247, 333, 4\)"
    yield "cmyk", four, {"photometric": "separated"}, "SEPARATED uint8"
    yield "lab", colour, {"photometric": "cielab"}, "CIELAB"
    channels = np.zeros((5, 247, 333), np.uint8)
    yield "channels", channels, {"photometric": "minisblack"}, "MINISBLACK uint8 .*axes IYX"
    yield "stack", np.zeros((5, 247, 333, 3), np.uint8), {}, "RGB uint8 .*axes IYXS"


@pytest.mark.parametrize(
    ("pixels", "how", "what"),
    [case[1:] for case in other_pixels()],
    ids=[case[0] for case in other_pixels()],
)
def test_what_is_not_rgb_is_refused_for_every_reader(
    tmp_path: Path, pixels: np.ndarray, how: dict[str, Any], what: str
) -> None:
    path = write_tiff(tmp_path / "a.tiff", [pixels], **how)
    with pytest.raises(SlideError, match=f"needs 8-bit RGB.*{what}.*Convert it") as refusal:
        open_slide(path)
    assert not isinstance(refusal.value, UnknownFormatError)  # hence OpenSlide is not asked


def test_fluorescence_in_ome_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(
        path, np.zeros((3, 247, 333), np.uint8), tile=(64, 112), metadata={"axes": "CYX"}
    )
    with pytest.raises(SlideError, match="needs 8-bit RGB; got MINISBLACK uint8 .*axes CYX"):
        open_slide(path)


def test_entities_in_a_description_are_never_expanded(tmp_path: Path) -> None:
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">' + "".join(
        f'<!ENTITY {new} "{f"&{old};" * 10}">'
        for old, new in zip("abcdefghi", "bcdefghij", strict=True)
    )
    text = f'<?xml version="1.0"?>{bomb}]><OME><Image>&j;</Image></OME>'
    path = write_tiff(tmp_path / "a.ome.tif", [tissue_like(90, 60)], description=text)
    with pytest.raises(SlideError, match="without a DOCTYPE"):
        open_slide(path)


@pytest.mark.parametrize("is_reduced", [True, False])
def test_ome_with_levels_as_pages(tmp_path: Path, is_reduced: bool) -> None:
    """The flat kind: OME-XML names the first page, the others are reduced copies of it."""
    levels = pyramid(500, 332)
    path = tmp_path / "a.ome.tif"
    text = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" '
        'SizeX="500" SizeY="332" SizeC="3" SizeZ="1" SizeT="1" PhysicalSizeX="0.25" '
        'PhysicalSizeY="0.25"><Channel ID="Channel:0:0" SamplesPerPixel="3"/>'
        '<TiffData IFD="0" PlaneCount="1"/></Pixels></Image></OME>'
    )
    with tifffile.TiffWriter(path) as writer:
        for i, level in enumerate(levels):
            writer.write(
                level,
                photometric="rgb",
                tile=(64, 112),
                subfiletype=int(is_reduced and i > 0),
                description=text if i == 0 else None,
                metadata=None,
            )
    with open_slide(path) as slide:
        assert (slide.reader, slide.vendor, slide.mpp) == ("tiled-tiff", "ome", 0.25)
        assert np.array_equal(whole(slide), levels[0])
        assert [level.downsample for level in slide.levels] == ([1, 2, 4] if is_reduced else [1])
        if is_reduced:
            assert np.array_equal(whole(slide, 2), levels[2])
