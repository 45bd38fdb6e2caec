from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import psutil
import pytest
import simplejpeg
from dicom_slides import ICC, DicomWriter
from pydicom.dataset import Dataset
from synthetic_slides import pyramid, tissue_like
from tiff_dialects import jpeg2000

from anlage.errors import SlideError
from anlage.slides.formats.dicom_reader import DicomReader
from anlage.slides.formats.openslide_reader import OpenSlideReader
from anlage.slides.reader import SlideReader, UnknownFormatError, open_slide
from anlage.slides.storage.byte_source import SlideChangedError

JPEG, JPEG_LS, JPEG_2000 = (f"1.2.840.10008.1.2.4.{n}" for n in (50, 80, 90))
NATIVE = [
    "camelyon_multiframe_jp2k.dcm",
    "highdicom_sm_image.dcm",
    "highdicom_sm_image_control.dcm",
    "highdicom_sm_image_dots.dcm",
    "highdicom_sm_image_numbers.dcm",
]
LIMIT_S = 120


def whole(slide: SlideReader, level: int = 0) -> np.ndarray:
    shape = slide.levels[level]
    width, height = min(shape.width, 700), min(shape.height, 500)  # but of the largest real one
    return slide.read_region(0, 0, width, height, level=level)


def furthest(a: np.ndarray, b: np.ndarray) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b).max())


def agree(path: Path) -> None:
    """Ours and OpenSlide say the same of one slide, pixel for pixel."""
    with DicomReader(str(path)) as native, OpenSlideReader(str(path)) as other:
        for name in ("levels", "vendor", "resolution", "associated", "icc_profile"):
            assert getattr(native, name) == getattr(other, name), name
        for i, downsample in enumerate(other.own_downsamples):
            if downsample == round(downsample):
                assert furthest(whole(native, i), whole(other, i)) <= 1
        for name in native.associated:
            pictures = [slide.read_associated(name) for slide in (native, other)]
            assert furthest(*pictures) <= 1


@pytest.mark.parametrize("name", NATIVE)
def test_real_files_are_read_as_openslide_reads_them(shared_data: Path, name: str) -> None:
    path = shared_data / "slides" / "native" / name
    agree(path)
    assert open_slide(path).reader == "dicom"


def test_jpeg_ls_which_openslide_does_not_read(shared_data: Path) -> None:
    folder = shared_data / "slides" / "native"
    with_table, without = (
        DicomReader(str(folder / f"highdicom_sm_image_{name}.dcm"))
        for name in ("jpegls", "jpegls_nobot")
    )
    plain = DicomReader(str(folder / "highdicom_sm_image.dcm"))
    assert np.array_equal(whole(with_table), whole(without))
    assert np.array_equal(whole(with_table), whole(plain))


def encode_jpeg(tile: np.ndarray) -> bytes:
    return bytes(simplejpeg.encode_jpeg(tile, quality=90, colorsubsampling="422"))


def encode_rgb_jpeg(tile: np.ndarray) -> bytes:
    """Three components that are RGB, of which nothing in the JPEG tells: only the data set does."""
    encoded = bytearray(imagecodecs.jpeg8_encode(tile, level=95, outcolorspace="RGB"))
    assert b"JFIF" not in encoded
    assert b"Adobe" in encoded
    for name, number in zip(b"RGB", (1, 2, 3), strict=True):
        frame, scan = encoded.find(b"\xff\xc0") + 10, encoded.find(b"\xff\xda") + 5
        assert encoded[frame + 3 * (number - 1)] == encoded[scan + 2 * (number - 1)] == name
        encoded[frame + 3 * (number - 1)] = encoded[scan + 2 * (number - 1)] = number
    at = encoded.find(b"\xff\xee")
    return bytes(encoded[:at] + encoded[at + 16 :])


WAYS: dict[str, dict[str, Any]] = {
    "none": {},
    "jpeg": {"syntax": JPEG, "photometric": "YBR_FULL_422", "encode": encode_jpeg},
    "jpeg-rgb": {"syntax": JPEG, "photometric": "RGB", "encode": encode_rgb_jpeg},
    "jpeg2000": {"syntax": JPEG_2000, "photometric": "YBR_RCT", "encode": jpeg2000},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_series_of_files_is_one_slide(tmp_path: Path, way: str) -> None:
    levels = pyramid(500, 332)
    label, macro = tissue_like(61, 50, seed=1), tissue_like(200, 90, seed=2)
    writer = DicomWriter(tmp_path, **WAYS[way])
    writer.write_levels(levels)
    writer.write("l.dcm", label, flavor="LABEL")
    writer.write("o.dcm", macro, flavor="OVERVIEW")
    DicomWriter(tmp_path).write("other.dcm", tissue_like(300, 200, seed=5))  # of another series
    agree(tmp_path / "level0.dcm")
    for name in ("level0.dcm", "level2.dcm", "l.dcm"):
        with open_slide(tmp_path / name) as slide:
            assert (slide.reader, slide.vendor, slide.mpp) == ("dicom", "dicom", 0.25)
            assert slide.native_tile(1) == (112, 64)
            is_jpeg = way in {"jpeg", "jpeg-rgb"}
            assert slide.reductions(0) == ((1, 2, 4, 8) if is_jpeg else (1,))
            assert [level.downsample for level in slide.levels] == [1, 2, 4]
            assert slide.icc_profile == ICC
            assert slide.associated == ("label", "macro")
            for i, level in enumerate(levels):
                difference = np.abs(whole(slide, i).astype(int) - level)
                assert difference.mean() < (8 if is_jpeg else 1e-9)


def test_a_sparse_picture_is_white_where_it_has_no_frame(tmp_path: Path) -> None:
    picture = tissue_like(300, 200)  # 3 x 4 tiles of 112 x 64
    writer = DicomWriter(tmp_path, extent=(200, 300))
    path = writer.write("a.dcm", picture, frames=[4, 0, 11])
    expected = np.full_like(picture, 255)
    for top, left in [(0, 0), (64, 112), (192, 224)]:
        block = np.s_[top : top + 64, left : left + 112]
        expected[block] = picture[block]
    with DicomReader(str(path)) as slide:
        assert np.array_equal(whole(slide), expected)
    agree(path)


def test_a_picture_cut_into_files(tmp_path: Path) -> None:
    picture = tissue_like(300, 200)
    paths = DicomWriter(tmp_path).write_parts(picture, n_first=5)
    for path in paths:
        with DicomReader(str(path)) as slide:
            assert np.array_equal(whole(slide), picture)
    paths[0].unlink()
    with pytest.raises(SlideError, match="needs every file of level 0, .*; got 1 of 2"):
        open_slide(paths[1])


def grey(dataset: Dataset) -> None:
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.PixelData = dataset.PixelData[::3]


def deep(dataset: Dataset) -> None:
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelData = dataset.PixelData * 2


def stacked(dataset: Dataset) -> None:
    dataset.TotalPixelMatrixFocalPlanes = 2
    dataset.NumberOfFrames *= 2
    dataset.PixelData = dataset.PixelData * 2
    dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices = 1.0


def short(dataset: Dataset) -> None:
    dataset.NumberOfFrames -= 2
    dataset.PixelData = dataset.PixelData[: -2 * 64 * 112 * 3]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (grey, r"needs 8-bit RGB; got 1 sample\(s\) of 8 bits, MONOCHROME2"),
        (deep, r"needs 8-bit RGB; got 3 sample\(s\) of 16 bits"),
        (stacked, "needs one focal plane and one optical path; level 0 has 1 .*, 2 planes"),
        (short, "needs 12 frames for level 0; got 10"),
    ],
)
def test_what_is_not_one_plane_of_rgb_is_refused_for_every_reader(
    tmp_path: Path, change: Callable[[Dataset], None], why: str
) -> None:
    path = DicomWriter(tmp_path).write("a.dcm", tissue_like(300, 200), change=change)
    with pytest.raises(SlideError, match=why) as refusal:
        open_slide(path)
    assert not isinstance(refusal.value, UnknownFormatError)


def test_focal_planes_as_files_are_refused(tmp_path: Path) -> None:
    writer = DicomWriter(tmp_path)
    for name in ("z0.dcm", "z1.dcm"):
        writer.write(name, tissue_like(300, 200))
    with pytest.raises(SlideError, match="level 0 has 2 pictures of one size"):
        open_slide(tmp_path / "z0.dcm")


def test_planes_of_colour_are_left_to_others(tmp_path: Path) -> None:
    def change(dataset: Dataset) -> None:
        dataset.PlanarConfiguration = 1

    path = DicomWriter(tmp_path).write("a.dcm", tissue_like(300, 200), change=change)
    with pytest.raises(UnknownFormatError, match="needs RGB pixel by pixel"):
        DicomReader(str(path))
    with pytest.raises(SlideError, match="no reader knows this file"):
        open_slide(path)


def test_other_files_are_left_to_others(tmp_path: Path, shared_data: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"no DICOM at all")
    with pytest.raises(UnknownFormatError, match="not a DICOM file"):
        DicomReader(str(tmp_path / "a.dcm"))
    segmentation = shared_data / "slides" / "native" / "highdicom_seg_image_sm_dots.dcm"
    with pytest.raises(UnknownFormatError, match="not one of a whole-slide image"):
        DicomReader(str(segmentation))


@pytest.mark.parametrize("way", ["jpeg", "jpeg2000"])
def test_a_damaged_frame_is_named_and_costs_only_itself(tmp_path: Path, way: str) -> None:
    picture = tissue_like(300, 200)
    path = DicomWriter(tmp_path, **WAYS[way]).write("a.dcm", picture)
    with DicomReader(str(path)) as slide:
        before = whole(slide)
        offset, count = slide._index.levels[0].place(4)
    with path.open("r+b") as file:
        file.seek(offset + count // 2)
        file.write(bytes(count - count // 2))
    with open_slide(path) as slide:
        with pytest.raises(SlideError, match=r"level 0, tile row 1, column 1 .* is damaged"):
            slide.read_region(120, 70, 20, 20)
        assert np.array_equal(slide.read_region(0, 128, 300, 72), before[128:])


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.9])
def test_a_cut_file_is_refused_when_it_is_opened(tmp_path: Path, share: float) -> None:
    path = DicomWriter(tmp_path, **WAYS["jpeg"]).write("a.dcm", tissue_like(300, 200))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(SlideError, match=r"a\.dcm"):
        DicomReader(str(path))


def test_threads_and_close(tmp_path: Path) -> None:
    picture = tissue_like(500, 332)
    path = DicomWriter(tmp_path).write("a.dcm", picture)
    slide = DicomReader(str(path))
    draw = np.random.default_rng(0)
    places = [(int(draw.integers(0, 400)), int(draw.integers(0, 250))) for _ in range(40)]

    def is_right(place: tuple[int, int]) -> bool:
        x, y = place
        return np.array_equal(slide.read_region(x, y, 90, 80), picture[y : y + 80, x : x + 90])

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(is_right, places))
    slide.close()
    with pytest.raises(SlideError, match="has been closed"):
        is_right(places[0])


def _read_in_child(slide: SlideReader, queue: Any) -> None:
    queue.put(whole(slide).tobytes())


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_it_reads_after_a_fork(tmp_path: Path) -> None:
    picture = tissue_like(300, 200)
    path = DicomWriter(tmp_path).write("a.dcm", picture)
    with DicomReader(str(path)) as slide:
        whole(slide)
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        child = context.Process(target=_read_in_child, args=(slide, queue))
        child.start()
        assert queue.get(timeout=LIMIT_S) == whole(slide).tobytes() == picture.tobytes()
        child.join(LIMIT_S)


WITHOUT_THE_EXTRA = """
import sys
sys.modules["wsidicom"] = None
from anlage.errors import SlideError
from anlage.slides.reader import open_slide
print(open_slide(sys.argv[1]).reader)
try:
    open_slide(sys.argv[2])
except SlideError as error:
    print(error)
"""


def test_without_the_extra_openslide_serves(tmp_path: Path, shared_data: Path) -> None:
    path = DicomWriter(tmp_path).write("a.dcm", tissue_like(300, 200))
    other = shared_data / "slides" / "native" / "highdicom_sm_image_jpegls.dcm"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_EXTRA, path, other],
        capture_output=True,
        text=True,
        check=True,
        timeout=LIMIT_S,
    )
    reader, error = done.stdout.strip().split("\n", 1)
    assert reader == "openslide"
    assert "wsidicom is missing" in error
    assert "pip install 'anlage[dicom]'" in error


def no_columns(dataset: Dataset) -> None:
    dataset.TotalPixelMatrixColumns = 0


def endless(dataset: Dataset) -> None:
    dataset.TotalPixelMatrixColumns = dataset.TotalPixelMatrixRows = 2**31


@pytest.mark.parametrize("change", [no_columns, endless])
@pytest.mark.parametrize("frames", [None, [0, 4]])
def test_a_grid_that_cannot_be(
    tmp_path: Path, change: Callable[[Dataset], None], frames: list[int] | None
) -> None:
    writer = DicomWriter(tmp_path, extent=(200, 300))
    path = writer.write("a.dcm", tissue_like(300, 200), frames=frames, change=change)
    with pytest.raises(SlideError, match=r"needs 1 to 8388608 tiles; got .* It is damaged"):
        open_slide(path)


def test_what_lies_beside_a_series_is_passed_over(tmp_path: Path) -> None:
    path = DicomWriter(tmp_path).write("a.dcm", tissue_like(300, 200))
    (tmp_path / "gone.dcm").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.dcm").mkdir()
    (tmp_path / "again.dcm").symlink_to(path)
    with DicomReader(str(path)) as slide:
        assert slide.size == (300, 200)


@pytest.mark.parametrize("names", [("1.2.5", "1.2.6"), ("one", "two"), ("a.dcm", "b.dcm")])
def test_files_of_any_names_are_one_slide(tmp_path: Path, names: tuple[str, str]) -> None:
    levels = pyramid(500, 332)[:2]
    writer = DicomWriter(tmp_path, extent=(332, 500))
    for i, name in enumerate(names):
        writer.write(name, levels[i], downsample=2**i)
    with DicomReader(str(tmp_path / names[0])) as slide:
        assert len(slide.levels) == 2


def test_levels_of_other_shapes_are_left_to_others(tmp_path: Path) -> None:
    writer = DicomWriter(tmp_path, extent=(200, 300))
    path = writer.write("a.dcm", tissue_like(300, 200))
    writer.write("b.dcm", tissue_like(150, 150), downsample=2)
    with pytest.raises(UnknownFormatError, match="needs levels of one shape"):
        DicomReader(str(path))


def test_a_series_holds_one_file_open(tmp_path: Path) -> None:
    process = psutil.Process()
    levels = pyramid(500, 332)
    path = DicomWriter(tmp_path).write_levels(levels)
    n_before = process.num_fds()
    with DicomReader(str(path)) as slide:
        for i in (0, 2, 1, 2, 0):
            assert np.array_equal(whole(slide, i), levels[i])
            assert process.num_fds() == n_before + 1


def test_a_file_of_the_series_that_was_replaced(tmp_path: Path) -> None:
    path = DicomWriter(tmp_path).write_levels(pyramid(500, 332))
    with DicomReader(str(path)) as slide:
        whole(slide, 0)
        (tmp_path / "level1.dcm").write_bytes(path.read_bytes())
        with pytest.raises(SlideChangedError, match=r"level1\.dcm: has changed since"):
            whole(slide, 1)
