"""What a bad slide file gets: an error that names it, or the right pixels; never a hang."""

from __future__ import annotations

import multiprocessing
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from dicom_slides import DicomWriter
from faults.reading_child import LIMIT_S, outcomes
from faults.test_damaged_headers import cog, dicom, generic, ome, philips, svs
from PIL import Image
from pydicom.dataset import Dataset
from synthetic_slides import overwrite_tile, tissue_like, write_tiff
from tiff_dialects import jpeg2000, jpeg2000_of_ycbcr, write_philips, write_svs

from anlage.errors import ResolutionError, SlideError
from anlage.samples import slides_folder
from anlage.slides.reader import SlideReader, open_slide

NAMES = ["a.svs", "a.tiff", "a.ome.tif", "a.ndpi", "a.mrxs", "a.dcm", "a.dzi", "a.png", "a.jpg"]
SVS = slides_folder() / "CMU-1-Small-Region.svs"


def test_empty_files(tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).touch()
    for outcome in outcomes([tmp_path / name for name in NAMES]):
        assert "is empty (0 bytes). Copy it again" in outcome.message


def test_files_cut_at_60_percent(tmp_path: Path) -> None:
    paths = []
    for make in (svs, philips, ome, cog, generic, dicom):
        (tmp_path / make.__name__).mkdir()
        paths.append(make(tmp_path / make.__name__))
        paths[-1].write_bytes(paths[-1].read_bytes()[: paths[-1].stat().st_size * 6 // 10])
    for path, outcome in zip(paths, outcomes(paths), strict=True):
        assert (outcome.error, outcome.reader) == ("SlideError", ""), path  # when it is opened
        assert str(path) in outcome.message


def test_real_files_cut_at_60_percent(tmp_path: Path, shared_data: Path) -> None:
    names = ["test3-TRITC.ndpi", "camelyon_multiframe_jp2k.dcm", "OS-1-detail_HE.ome.tif"]
    paths = []
    for source in [SVS, *(shared_data / "slides" / "native" / name for name in names)]:
        paths.append(tmp_path / source.name)
        data = source.read_bytes()
        paths[-1].write_bytes(data[: len(data) * 6 // 10])
    for outcome in outcomes(paths):
        assert (outcome.error, outcome.reader) == ("SlideError", ""), outcome


def test_files_under_a_wrong_name_are_read_by_what_they_hold(tmp_path: Path) -> None:
    picture = tissue_like(90, 60)
    Image.fromarray(picture).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").rename(tmp_path / "a.svs")
    write_tiff(tmp_path / "a.png", [picture])
    Image.fromarray(picture).save(tmp_path / "b.png")
    (tmp_path / "b.png").rename(tmp_path / "b.dcm")
    paths = [tmp_path / name for name in ("a.svs", "a.png", "b.dcm")]
    assert [outcome.reader for outcome in outcomes(paths)] == ["image", "tiled-tiff", "image"]
    for path in paths[1:]:
        with open_slide(path) as slide:
            assert np.array_equal(slide.read_region(0, 0, 90, 60), picture)


def test_files_that_are_no_slides(tmp_path: Path) -> None:
    (tmp_path / "a.tiff").write_text("slide_id,mpp\na,0.5\n" * 100)
    with zipfile.ZipFile(tmp_path / "a.ndpi", "w") as archive:
        archive.writestr("a.svs", b"II*\0" * 100)
    (tmp_path / "a.dzi").write_text("<html><body>404 Not Found</body></html>")
    (tmp_path / "a.mrxs").write_bytes(bytes(5000))
    paths = sorted(tmp_path.iterdir())
    for outcome in outcomes(paths):
        assert outcome.error == "SlideError"
        assert "no reader knows this file. tiled-tiff: not a TIFF." in outcome.message
        assert "openslide: " in outcome.message


ENCODED: dict[str, dict[str, Any]] = {
    "jpeg": {"compression": "jpeg"},
    "jpeg2000": {"compression": 33005, "encode": jpeg2000},
    "jpeg2000-ycbcr": {"compression": 33003, "encode": jpeg2000_of_ycbcr},
    "lzw": {"compression": "lzw"},
    "deflate": {"compression": "deflate"},
    "webp": {"compression": "webp"},
    "jpegxl": {"compression": "jpegxl"},
}


# A WebP has no checksum: with zeros for its second half it decodes, to other pixels.
@pytest.mark.parametrize(
    ("encoding", "damage"),
    [
        (encoding, damage)
        for encoding in ENCODED
        for damage in ("zeros", "garbage", "half")
        if (encoding, damage) != ("webp", "half")
    ],
)
def test_a_damaged_tile_is_named_and_costs_only_itself(
    tmp_path: Path, encoding: str, damage: str
) -> None:
    beside = {name: tissue_like(30, 20) for name in ("thumbnail", "label", "macro")}
    path = write_svs(tmp_path / "a.svs", [tissue_like(330, 250)], **beside, **ENCODED[encoding])
    with open_slide(path) as slide:
        before = slide.read_region(0, 0, 330, 250)
    with tifffile.TiffFile(path) as tiff:
        offset, count = (getattr(tiff.pages.first, n)[4] for n in ("dataoffsets", "databytecounts"))
    data = {
        "zeros": None,
        "garbage": np.random.default_rng(3).bytes(count),
        "half": path.read_bytes()[offset : offset + count // 2],  # and zeros behind it
    }
    overwrite_tile(path, page=0, tile=4, data=data[damage])  # columns 112 to 223, rows 64 to 127
    with open_slide(path) as slide:
        with pytest.raises(SlideError, match=r"a\.svs: level 0, tile row 1, column 1 .*damaged"):
            slide.read_region(100, 60, 50, 50)
        assert np.array_equal(slide.read_region(0, 0, 330, 64), before[:64])
        assert np.array_equal(slide.read_region(224, 0, 106, 250), before[:, 224:])


def stretched(dataset: Dataset) -> None:
    dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [5e-4, 6e-4]


def bad_resolutions(folder: Path) -> dict[Path, str]:
    picture = tissue_like(256, 192)
    beside = {name: tissue_like(30, 20) for name in ("label", "macro")}
    thumbnail = tissue_like(24, 18)
    sane = "needs an mpp from 0.01 to 1000 µm per pixel; got"
    cases = {write_tiff(folder / "none.tiff", [picture], mpp=None): "says nothing usable"}
    for i, mpp in enumerate([0.0, -0.25, 1e6, float("inf")]):
        path = folder / f"absurd{i}.svs"
        write_svs(path, [picture], thumbnail=thumbnail, mpp=mpp, **beside)
        # "inf" is no number in Aperio's syntax, so that file says no mpp, but its objective's power
        if np.isfinite(mpp):
            cases[path] = f"{sane} x={mpp:g}, y={mpp:g} by its vendor tag"
    cases[write_philips(folder / "p.tiff", [picture], mpp=5e5, **beside)] = sane
    how: dict[str, Any] = {"resolution": (20000.0, 25000.0), "resolutionunit": "CENTIMETER"}
    cases[write_tiff(folder / "aniso.tiff", [picture], mpp=None, **how)] = "needs square pixels"
    cases[DicomWriter(folder).write("a.dcm", picture, change=stretched)] = "needs square pixels"
    return cases


def test_a_bad_mpp_is_refused_with_its_value_and_can_be_overridden(tmp_path: Path) -> None:
    for path, why in bad_resolutions(tmp_path).items():
        with open_slide(path) as slide:
            assert slide.resolution is None
            with pytest.raises(ResolutionError, match=rf"{path.name}: .*mpp=") as refusal:
                slide.mpp  # noqa: B018
            assert why in str(refusal.value)
        with open_slide(path, mpp=0.25) as slide:
            assert slide.mpp == 0.25


def write_huge(path: Path, *, width: int, height: int, tile_px: int, tile: bytes) -> Path:
    """A BigTIFF of one level in which only the first and the last tile are there."""
    n_tiles = -(-width // tile_px) * -(-height // tile_px)
    tags = [(256, 4, width), (257, 4, height), (259, 3, 1), (262, 3, 2), (277, 3, 3)]
    tags += [(322, 4, tile_px), (323, 4, tile_px), (284, 3, 1)]
    arrays_at = 16 + 8 + 20 * (len(tags) + 3) + 8 + 6
    offsets, counts = np.zeros(n_tiles, "<u8"), np.zeros(n_tiles, "<u8")
    offsets[[0, -1]], counts[[0, -1]] = arrays_at + 16 * n_tiles, len(tile)
    entries = [struct.pack("<HHQQ", code, kind, 1, value) for code, kind, value in tags]
    entries.insert(2, struct.pack("<HHQHHHH", 258, 3, 3, 8, 8, 8, 0))
    entries += [
        struct.pack("<HHQQ", 324, 16, n_tiles, arrays_at),
        struct.pack("<HHQQ", 325, 16, n_tiles, arrays_at + 8 * n_tiles),
    ]
    entries.sort(key=lambda entry: entry[:2][::-1])
    data = b"II\x2b\0\x08\0\0\0" + struct.pack("<QQ", 16, len(entries)) + b"".join(entries)
    data += bytes(arrays_at - len(data)) + offsets.tobytes() + counts.tobytes() + tile
    path.write_bytes(data)
    return path


def test_a_huge_slide_of_one_level(tmp_path: Path) -> None:
    """200,000 x 150,000 pixels, 84 GiB if they were there: 114,563 tiles of which two are."""
    tile = tissue_like(512, 512)
    how: dict[str, Any] = {"width": 200_000, "height": 150_000, "tile_px": 512}
    path = write_huge(tmp_path / "a.tiff", tile=tile.tobytes(), **how)
    with open_slide(path, mpp=0.25) as slide:
        assert (slide.reader, len(slide.levels), slide.size) == (
            "tiled-tiff",
            1,
            (200_000, 150_000),
        )
        assert np.array_equal(slide.read_region(0, 0, 512, 512), tile)
        left, top = 390 * 512, 292 * 512
        assert np.array_equal(
            slide.read_region(left, top, 320, 496), tile[: 150_000 - top, : 200_000 - left]
        )
        assert (slide.read_region(100_000, 100_000, 300, 300) == 255).all()


OVERVIEW = """
import resource, sys
from anlage.slides.overview import read_overview
from anlage.slides.reader import open_slide
with open_slide(sys.argv[1], mpp=0.25) as slide:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    picture, mpp = read_overview(slide, mpp=8)
    print(*picture.shape, mpp, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_an_overview_of_a_huge_level_stays_small(tmp_path: Path) -> None:
    """1.2 GB of pixels, of which the process holds a small share at any time."""
    tile = tissue_like(512, 512)
    how: dict[str, Any] = {"width": 25_000, "height": 16_000, "tile_px": 512}
    path = write_huge(tmp_path / "a.tiff", tile=tile.tobytes(), **how)
    done = subprocess.run(
        [sys.executable, "-c", OVERVIEW, path],
        capture_output=True,
        text=True,
        check=True,
        timeout=LIMIT_S,
    )
    height, width, _, mpp, grown_kib = map(float, done.stdout.split())
    assert (width, height, mpp) == (782, 500, 8.0)
    assert grown_kib * 1024 < 400e6


def _read_in_child(slide: SlideReader, queue: Any) -> None:
    queue.put([slide.read_region(30 * i, 20 * i, 100, 80).tobytes() for i in range(10)])


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("name", ["a.tiff", "a.png"])
def test_reading_goes_on_after_a_fork(tmp_path: Path, name: str) -> None:
    picture = tissue_like(400, 300)
    if name == "a.png":
        Image.fromarray(picture).save(tmp_path / name)
    else:
        write_tiff(tmp_path / name, [picture], compression="deflate")
    with open_slide(tmp_path / name) as slide:
        slide.read_region(0, 0, 10, 10)
        context = multiprocessing.get_context("fork")
        queues = [context.Queue() for _ in range(2)]
        children = [context.Process(target=_read_in_child, args=(slide, q)) for q in queues]
        for child in children:
            child.start()
        expected = [slide.read_region(30 * i, 20 * i, 100, 80).tobytes() for i in range(10)]
        for child, queue in zip(children, queues, strict=True):
            assert queue.get(timeout=LIMIT_S) == expected
            child.join(LIMIT_S)
