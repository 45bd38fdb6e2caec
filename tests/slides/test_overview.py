from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import pytest
from slide_tissue import tissue_of_slide
from synthetic_slides import ArraySlide, pyramid, tissue_like, write_tiff

from anlage.geometry import Size
from anlage.slides import overview
from anlage.slides.formats.tiff_reader import TiffReader
from anlage.slides.formats.tiled_picture import TiledPicture
from anlage.slides.overview import read_overview, shrink, thumbnail_mpp
from anlage.slides.reader import SlideReader, levels_of
from anlage.slides.resolution import Resolution


class FlatSlide(SlideReader):
    """One huge level that is made as it is read: glass with one square of colour."""

    reader: ClassVar[str] = "flat"
    SQUARE = (3000, 4000, 9000, 8000)  # left, top, right, bottom, level-0 pixels

    def __init__(self, side: int) -> None:
        levels = levels_of([Size(side, side)])
        super().__init__("flat", vendor="test", levels=levels, resolution=Resolution(0.25, "tiff"))
        self.largest_read = 0

    def _read_inside(self, level: int, left: int, top: int, size: Size) -> np.ndarray:
        assert level == 0
        self.largest_read = max(self.largest_read, size.width * size.height)
        pixels = np.full((size.height, size.width, 3), 240, np.uint8)
        x0, y0, x1, y1 = self.SQUARE
        rows = slice(max(0, y0 - top), max(0, y1 - top))
        pixels[rows, max(0, x0 - left) : max(0, x1 - left)] = (180, 90, 160)
        return pixels

    @property
    def associated(self) -> tuple[str, ...]:
        return ()

    def read_associated(self, name: str) -> np.ndarray:
        raise NotImplementedError(name)

    @property
    def icc_profile(self) -> bytes | None:
        return None


def slow_overview(picture: np.ndarray, ratio: float) -> np.ndarray:
    """Area average by repeating each pixel: exact for a ratio of whole tenths."""
    fine = np.repeat(np.repeat(picture.astype(np.float64), 10, axis=0), 10, axis=1)
    step = round(ratio * 10)
    height, width = (-(-extent // step) for extent in fine.shape[:2])
    fine = np.pad(
        fine,
        ((0, height * step - fine.shape[0]), (0, width * step - fine.shape[1]), (0, 0)),
        mode="edge",
    )
    return fine.reshape(height, step, width, step, 3).mean(axis=(1, 3))


@pytest.mark.parametrize("ratio", [1.0, 2.0, 4.0, 8.0])
def test_whole_ratios_average_exactly(ratio: float) -> None:
    picture = tissue_like(133, 85)
    found, mpp = read_overview(ArraySlide([picture], mpp=0.5), mpp=0.5 * ratio)
    expected = slow_overview(picture, ratio)
    assert mpp == 0.5 * ratio
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=0.51)


@pytest.mark.parametrize("ratio", [3.3, 5.7, 12.1])
def test_other_ratios_are_averaged_within_a_source_pixel(ratio: float) -> None:
    picture = cv2.GaussianBlur(tissue_like(133, 85), (0, 0), 4)
    found, mpp = read_overview(ArraySlide([picture], mpp=0.5), mpp=0.5 * ratio)
    expected = slow_overview(picture, ratio)
    assert mpp == 0.5 * ratio
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 1.0


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    slide = ArraySlide([tissue_like(500, 400)], mpp=0.5)
    whole, _ = read_overview(slide, mpp=2.0)
    monkeypatch.setattr(overview, "BLOCK_PX", 64)
    blocks, _ = read_overview(slide, mpp=2.0)
    np.testing.assert_array_equal(blocks, whole)


def test_nothing_drifts_over_many_blocks_of_an_odd_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "BLOCK_PX", 40)
    picture = np.full((60, 2000, 3), 240, np.uint8)
    picture[:, 1900:1907] = 20  # a line far from the origin
    found, mpp = read_overview(ArraySlide([picture], mpp=1.0), mpp=3.7)
    darkest = int(found[5, :, 0].argmin())
    assert abs((darkest + 0.5) * mpp - 1903.5) < mpp


def test_the_coarsest_level_that_suffices_is_read() -> None:
    levels = pyramid(512, 384)
    marked = [np.full_like(level, 40 * (i + 1)) for i, level in enumerate(levels)]
    slide = ArraySlide(marked, mpp=0.5)
    for mpp, grey in ((0.6, 40), (1.0, 80), (1.9, 80), (2.0, 120), (30.0, 120)):
        assert read_overview(slide, mpp=mpp)[0].max() == grey


def test_a_slide_coarser_than_asked_for_is_given_as_it_is() -> None:
    picture = tissue_like(50, 40)
    found, mpp = read_overview(ArraySlide([picture], mpp=29.0), mpp=8.0)
    assert mpp == 29.0
    np.testing.assert_array_equal(found, picture)


def test_the_edge_goes_on_in_the_slides_own_colour() -> None:
    dark = np.full((100, 101, 3), 10, np.uint8)
    found, _ = read_overview(ArraySlide([dark], mpp=1.0), mpp=10.0)
    assert found.shape == (10, 11, 3)
    assert (found == 10).all()


def test_a_huge_slide_of_one_level_is_read_in_bounded_memory() -> None:
    slide = FlatSlide(12_000)  # 0.43 GB as one picture
    tracemalloc.start()
    found = tissue_of_slide(slide, mask_mpp=8.0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.mask.shape == (375, 375)
    assert slide.largest_read <= overview.BLOCK_PX**2
    assert peak < 150e6
    inside = np.zeros((375, 375), dtype=bool)
    inside[125:250, 94:281] = True
    assert (found.mask != inside).mean() < 0.005


def test_the_mask_covers_the_slide_with_its_last_pixel() -> None:
    found = tissue_of_slide(ArraySlide([tissue_like(801, 799)], mpp=0.5), mask_mpp=8.0)
    assert found.mask.shape == (50, 51)
    assert found.mpp == 8.0


def test_a_thumbnail_is_at_most_512_long_and_never_enlarged() -> None:
    assert thumbnail_mpp(ArraySlide([tissue_like(2048, 64)], mpp=0.5)) == 2.0
    assert thumbnail_mpp(ArraySlide([tissue_like(100, 64)], mpp=0.5)) == 0.5
    small = shrink(tissue_like(400, 200), mpp=8.0, target_mpp=20.0)
    assert small.shape == (80, 160, 3)


@pytest.mark.parametrize("mpp", [0.0, -8.0, float("nan")])
def test_an_absurd_resolution_is_refused(mpp: float) -> None:
    with pytest.raises(ValueError, match=r"needs mpp > 0"):
        read_overview(ArraySlide([tissue_like(64, 64)], mpp=0.5), mpp=mpp)


@pytest.mark.parametrize("mpp", [2.0, 2.9, 4.0, 8.0])
def test_a_jpeg_slide_is_decoded_small_and_shows_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mpp: float
) -> None:
    picture = cv2.GaussianBlur(tissue_like(1003, 777), (0, 0), 3)
    path = write_tiff(tmp_path / "jpeg.tiff", [picture], compression="jpeg")
    reads: list[int] = []
    original = SlideReader.read_region

    def noted(slide: SlideReader, *place: int, level: int = 0, reduce: int = 1) -> np.ndarray:
        reads.append(reduce)
        return original(slide, *place, level=level, reduce=reduce)

    monkeypatch.setattr(SlideReader, "read_region", noted)
    with TiffReader(str(path)) as slide:
        found, found_mpp = read_overview(slide, mpp=mpp)
    assert set(reads) == {4 if mpp < 4 else 8}
    expected, _ = read_overview(ArraySlide([picture], mpp=0.5), mpp=mpp)
    assert found_mpp == mpp
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < 1.5


def test_strips_are_read_in_blocks_as_wide_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "BLOCK_PX", 128)
    picture = tissue_like(1000, 300)
    path = write_tiff(
        tmp_path / "strips.tiff", [picture], tile=None, rowsperstrip=16, compression="deflate"
    )
    decoded: list[int] = []
    original = TiledPicture.decode

    def counted(tiled: TiledPicture, index: int, *rest: object, **how: object) -> np.ndarray:
        decoded.append(index)
        return original(tiled, index, *rest, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(TiledPicture, "decode", counted)
    with TiffReader(str(path)) as slide:
        found, _ = read_overview(slide, mpp=2.0)
    assert len(decoded) <= 2 * 2 * 19  # 19 strips; one wider than a block would be 8 times each
    expected, _ = read_overview(ArraySlide([picture], mpp=0.5), mpp=2.0)
    np.testing.assert_array_equal(found, expected)
