from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from synthetic_slides import TILE, overwrite_tile, pyramid, tissue_like, write_tiff

from anlage.errors import SlideError
from anlage.slides.formats import tiff_pages
from anlage.slides.formats.openslide_reader import OpenSlideReader
from anlage.slides.formats.tiff_reader import TiffReader
from anlage.slides.reader import SlideReader, UnknownFormatError, open_slide

APERIO = "Aperio Image Library v12.0.0\r\n333x247 (112x64) J2K|AppMag = 40|MPP = 0.2503|Left = 1"


def whole(slide: SlideReader, level: int = 0) -> np.ndarray:
    shape = slide.levels[level]
    return slide.read_region(0, 0, shape.width, shape.height, level=level)


@pytest.mark.parametrize(
    "how",
    [
        {"rowsperstrip": 40},  # the last strip is shorter
        {"rowsperstrip": 247},
        {"rowsperstrip": 1000},
        {"rowsperstrip": 40, "compression": "lzw", "predictor": True},
        {"rowsperstrip": 40, "compression": "deflate"},
        {"rowsperstrip": 40, "byteorder": ">"},
    ],
)
def test_strips_are_tiles_as_wide_as_the_picture(tmp_path: Path, how: dict[str, Any]) -> None:
    picture = tissue_like(333, 247)
    how = {**how}
    with tifffile.TiffWriter(tmp_path / "a.tif", byteorder=how.pop("byteorder", "<")) as writer:
        writer.write(picture, photometric="rgb", metadata=None, **how)
    with TiffReader(str(tmp_path / "a.tif")) as slide:
        assert np.array_equal(whole(slide), picture)
        assert np.array_equal(slide.read_region(100, 35, 50, 90), picture[35:125, 100:150])


def test_big_tiff_and_big_endian(tmp_path: Path) -> None:
    picture = tissue_like(333, 247)
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, bigtiff=True, byteorder=">") as writer:
        writer.write(picture, photometric="rgb", tile=TILE, metadata=None)
    with TiffReader(str(path)) as slide:
        assert np.array_equal(whole(slide), picture)


def write_ome(path: Path, levels: list[np.ndarray], **metadata: Any) -> Path:
    with tifffile.TiffWriter(path, ome=True) as writer:
        how: dict[str, Any] = {"photometric": "rgb", "tile": TILE}
        writer.write(
            levels[0], subifds=len(levels) - 1, metadata={"axes": "YXS", **metadata}, **how
        )
        for level in levels[1:]:
            writer.write(level, subfiletype=1, **how)
    return path


def test_a_name_does_not_make_it_hamamatsus(tmp_path: Path) -> None:
    """tifffile reads files named so by 64-bit offsets, which theirs have and no others."""
    picture = tissue_like(500, 400)
    path = write_tiff(tmp_path / "a.tiff", [picture], compression="deflate").rename(
        tmp_path / "a.ndpi"
    )
    with TiffReader(str(path)) as slide:
        assert np.array_equal(whole(slide), picture)


def test_ome_levels_in_sub_pages(tmp_path: Path) -> None:
    levels = pyramid(501, 333)
    size = {"PhysicalSizeX": 250.0, "PhysicalSizeXUnit": "nm"}
    size |= {"PhysicalSizeY": 0.25, "PhysicalSizeYUnit": "µm"}
    path = write_ome(tmp_path / "a.ome.tif", levels, **size)
    with open_slide(path) as slide:
        assert (slide.reader, slide.vendor) == ("tiled-tiff", "ome")
        assert (slide.mpp, slide.resolution.source) == (pytest.approx(0.25), "vendor")
        for i, level in enumerate(levels):
            assert np.array_equal(whole(slide, i), level)


def test_ome_of_bioformats_says_rgb_and_holds_ycbcr(shared_data: Path) -> None:
    """OpenSlide refuses these; tifffile's own decoding is the oracle."""
    for name in ("OS-1-detail_HE.ome.tif", "OS-2-ndpi_Ki67.ome.tif"):
        path = shared_data / "slides" / "native" / name
        with TiffReader(str(path)) as slide:
            assert slide.mpp == pytest.approx(0.2271, abs=1e-4)
            difference = np.abs(whole(slide).astype(int) - tifffile.imread(path))
            assert difference.max() <= 1


def test_ome_pyramid_and_plain_strip_of_the_shared_data(shared_data: Path) -> None:
    paths = ["ometiff/helicobacterpylori_giemsa.ome.tif", "native/kidney-48-5_IHC.tif"]
    for name, n_levels in zip(paths, (3, 1), strict=True):
        path = shared_data / "slides" / name
        with TiffReader(str(path)) as slide, tifffile.TiffFile(path) as tiff:
            assert len(slide.levels) == n_levels
            for i, level in enumerate(tiff.series[0].levels):
                assert np.abs(whole(slide, i).astype(int) - level.asarray()).max() <= 1


def write_aperio_jpeg2000(path: Path, picture: np.ndarray) -> Path:
    """Aperio's variant (33005) of JPEG 2000, lossless."""
    height, width = picture.shape[:2]
    rows, columns = (-(-extent // edge) for extent, edge in zip((height, width), TILE, strict=True))
    padded = np.zeros((rows * TILE[0], columns * TILE[1], 3), np.uint8)
    padded[:height, :width] = picture
    encoded = [
        imagecodecs.jpeg2k_encode(
            np.ascontiguousarray(
                padded[i * TILE[0] : (i + 1) * TILE[0], j * TILE[1] : (j + 1) * TILE[1]]
            ),
            level=0,
            codecformat="j2k",
        )
        for i in range(rows)
        for j in range(columns)
    ]
    with tifffile.TiffWriter(path) as writer:
        writer.write(
            iter(encoded),
            shape=picture.shape,
            dtype=np.uint8,
            photometric="rgb",
            tile=TILE,
            compression=33005,
            description=APERIO,
            metadata=None,
        )
    return path


def test_aperio_jpeg2000_in_both_readers(tmp_path: Path) -> None:
    picture = tissue_like(333, 247)
    path = write_aperio_jpeg2000(tmp_path / "a.svs", picture)
    for reader in (TiffReader, OpenSlideReader):
        with reader(str(path)) as slide:
            assert (slide.vendor, slide.mpp) == ("aperio", 0.2503)
            assert np.array_equal(whole(slide), picture)


def test_a_cut_jpeg2000_tile_is_refused(tmp_path: Path) -> None:
    path = write_aperio_jpeg2000(tmp_path / "a.svs", tissue_like(333, 247))
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[0].dataoffsets[0], tiff.pages[0].databytecounts[0]
    start = path.read_bytes()[offset : offset + count // 20]
    overwrite_tile(path, page=0, tile=0, data=start)
    with TiffReader(str(path)) as slide, pytest.raises(SlideError, match="tile row 0, column 0"):
        whole(slide)


@pytest.mark.parametrize("compression", ["jpeg", "lzw", "deflate"])
def test_a_cut_tile_is_refused_and_its_neighbours_are_read(
    tmp_path: Path, compression: str
) -> None:
    path = write_tiff(tmp_path / "a.tiff", [tissue_like(500, 400)], compression=compression)
    with TiffReader(str(path)) as slide:
        before = whole(slide)
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[0].dataoffsets[1], tiff.pages[0].databytecounts[1]
    start = path.read_bytes()[offset : offset + count * 6 // 10]
    overwrite_tile(path, page=0, tile=1, data=start)
    with TiffReader(str(path)) as slide:
        with pytest.raises(SlideError, match=rf"level 0, tile row 0, column 1 .*{offset + count}"):
            slide.read_region(100, 40, 64, 64)
        assert np.array_equal(slide.read_region(224, 0, 200, 200), before[:200, 224:424])
        assert np.array_equal(slide.read_region(0, 64, 200, 200), before[64:264, :200])


def test_a_file_that_shrinks_after_it_was_opened(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tiff", [tissue_like(500, 400)])
    with TiffReader(str(path)) as slide:
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2)
        slide.read_region(0, 0, 100, 60)
        with pytest.raises(SlideError, match="has been cut since it was opened"):
            slide.read_region(400, 340, 64, 40)


def edit_counts(path: Path, change: dict[int, tuple[int, int]]) -> None:
    """Write offset and length of some tiles of the first page into its index."""
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tags = tiff.pages[0].tags
        offsets, counts = (list(tags[name].value) for name in ("TileOffsets", "TileByteCounts"))
        for tile, (offset, count) in change.items():
            offsets[tile], counts[tile] = offset, count
        tags["TileOffsets"].overwrite(offsets)
        tags["TileByteCounts"].overwrite(counts)


def test_a_tile_that_was_left_out_is_white_in_both_readers(tmp_path: Path) -> None:
    picture = tissue_like(500, 400)
    path = write_tiff(tmp_path / "a.tiff", [picture])
    edit_counts(path, {1: (0, 0)})
    expected = picture.copy()
    expected[: TILE[0], TILE[1] : 2 * TILE[1]] = 255
    for reader in (TiffReader, OpenSlideReader):
        with reader(str(path)) as slide:
            assert np.array_equal(whole(slide), expected)


def test_aperio_files_that_lack_tiles_are_left_to_openslide(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.svs", [tissue_like(500, 400)], description=APERIO)
    edit_counts(path, {1: (0, 0)})
    with pytest.raises(UnknownFormatError, match="left to OpenSlide"):
        TiffReader(str(path))
    assert open_slide(path).reader == "openslide"


def test_a_tile_beyond_the_file_is_refused_at_once(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tiff", [tissue_like(500, 400)])
    size = path.stat().st_size
    edit_counts(path, {7: (size - 100, 21504)})
    with pytest.raises(SlideError, match=rf"tile row 1, column 2 ends at byte \d+ of {size}"):
        open_slide(path)


@pytest.mark.parametrize(
    ("picture", "how", "what"),
    [
        (np.zeros((247, 333, 3), np.uint16), {}, "uint16"),
        (np.zeros((247, 333), np.uint8), {"photometric": "minisblack"}, "axes YX"),
        (np.zeros((247, 333), np.uint16), {"photometric": "minisblack"}, "uint16"),
        (np.zeros((247, 333, 3), np.float32), {}, "float32"),
    ],
)
def test_other_pixels_are_refused_by_what_they_are(
    tmp_path: Path, picture: np.ndarray, how: dict[str, Any], what: str
) -> None:
    path = write_tiff(tmp_path / "a.tiff", [picture], **how)
    with pytest.raises(SlideError, match=rf"needs 8-bit RGB; got .*{what}"):
        open_slide(path)


def test_stacks_are_refused_for_every_reader(tmp_path: Path) -> None:
    stack = np.zeros((5, 247, 333, 3), np.uint8)
    path = write_tiff(tmp_path / "stack.tiff", [stack])
    with pytest.raises(SlideError, match=r"needs 8-bit RGB; got RGB uint8 .*axes IYXS"):
        open_slide(path)


def test_planes_are_left_to_openslide(tmp_path: Path) -> None:
    picture = tissue_like(333, 247)
    planes = np.ascontiguousarray(picture.transpose(2, 0, 1))
    how: dict[str, Any] = {"planarconfig": "separate", "tile": (64, 128)}
    path = write_tiff(tmp_path / "planes.tiff", [planes], **how)
    with pytest.raises(UnknownFormatError, match="SEPARATE planes"):
        TiffReader(str(path))
    with open_slide(path) as slide:
        assert slide.reader == "openslide"
        assert np.array_equal(whole(slide), picture)


def test_an_unknown_compression_is_named(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tiff", [tissue_like(200, 150)], compression="zstd")
    with pytest.raises(SlideError, match="ZSTD"):
        TiffReader(str(path))


def test_giant_tiles_and_strips_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiff_pages, "MAX_TILE_PX", 2000)
    tiled = write_tiff(tmp_path / "tiled.tiff", [tissue_like(333, 247)])
    with pytest.raises(SlideError, match="tiles of at most 2000 pixels; page 0 has 112 x 64"):
        open_slide(tiled)
    tifffile.imwrite(tmp_path / "strip.tiff", tissue_like(333, 247), photometric="rgb")
    with pytest.raises(SlideError, match="strips of at most 2000 pixels"):
        open_slide(tmp_path / "strip.tiff")


def test_pages_of_another_shape_are_no_levels(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tiff", [tissue_like(400, 300), tissue_like(100, 150)])
    with TiffReader(str(path)) as slide:
        assert [(level.width, level.height) for level in slide.levels] == [(400, 300)]
    aperio = write_tiff(
        tmp_path / "a.svs",
        [tissue_like(400, 300), tissue_like(64, 48), tissue_like(100, 150)],
        description=APERIO,
        mpp=None,
    )
    with tifffile.TiffFile(aperio, mode="r+b") as tiff:
        for page in tiff.pages:
            page.tags["NewSubfileType"].overwrite(0)
    with pytest.raises(UnknownFormatError, match="levels of one shape; got 400 x 300 and 100"):
        TiffReader(str(aperio))


def test_levels_are_finest_first_whatever_their_order_in_the_file(tmp_path: Path) -> None:
    full, half, quarter = pyramid(400, 300)
    thumbnail = tissue_like(64, 48)
    path = tmp_path / "a.svs"
    write_tiff(path, [full, thumbnail, quarter, half], description=APERIO, mpp=None)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        for page in tiff.pages:
            page.tags["NewSubfileType"].overwrite(0)
    with TiffReader(str(path)) as slide:
        assert [level.downsample for level in slide.levels] == [1, 2, 4]
        for i, level in enumerate([full, half, quarter]):
            assert np.array_equal(whole(slide, i), level)
        assert np.array_equal(slide.read_associated("thumbnail"), thumbnail)


def test_tables_that_the_tiles_share(tmp_path: Path) -> None:
    """Aperio stores JPEG tables once, beside tiles without any, and says RGB only in the TIFF."""
    from anlage.samples import slides_folder

    path = slides_folder() / "CMU-1-Small-Region.svs"
    with TiffReader(str(path)) as slide:
        codec = slide._index.levels[0].codec
        assert codec.jpeg_head.startswith(b"\xff\xd8\xff\xee")
        assert np.abs(whole(slide).astype(int) - tifffile.imread(path, series=0)).max() <= 1


def test_a_broken_index_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_tiff(tmp_path / "a.tiff", [tissue_like(333, 247)])
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].tags["TileWidth"].overwrite(0)
    with caplog.at_level(logging.CRITICAL), pytest.raises(SlideError, match="damaged"):
        open_slide(path)
