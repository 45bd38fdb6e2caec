"""ICC to sRGB: the maths of a known profile, Pillow's own whole picture, threads, damage."""

from __future__ import annotations

import io
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from icc_profiles import SRGB_TO_XYZ, WIDE_TO_XYZ, in_srgb, matrix_profile
from PIL import Image, ImageCms
from synthetic_slides import pyramid, write_tiff

from anlage.errors import SlideError
from anlage.slides.colour import slide_converter, srgb_converter
from anlage.slides.levels import TileWindow
from anlage.slides.reader import open_slide
from anlage.slides.regions import read_tiles

WIDE = matrix_profile(WIDE_TO_XYZ, gamma=1.8)


def every_colour(step: int = 15) -> np.ndarray:
    value = np.arange(0, 256, step, dtype=np.uint8)
    return np.stack(np.meshgrid(value, value, value, indexing="ij"), -1).reshape(len(value), -1, 3)


@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.2])
@pytest.mark.parametrize("primaries", [SRGB_TO_XYZ, WIDE_TO_XYZ], ids=["srgb", "wide"])
def test_a_profile_of_known_maths_gives_its_closed_form(
    primaries: np.ndarray, gamma: float
) -> None:
    convert = srgb_converter(matrix_profile(primaries, gamma=gamma))
    assert convert is not None
    pixels = every_colour()
    before = pixels.copy()
    shown = convert(pixels)
    expected = in_srgb(pixels, primaries, gamma=gamma)
    assert np.abs(shown - expected).max() <= 2  # units of 255; lcms has 8 bits in and out
    assert np.abs(shown - expected).mean() < 0.4
    assert np.array_equal(pixels, before)
    assert shown.dtype == np.uint8
    assert shown.flags.writeable


def test_it_is_pillows_conversion_of_the_whole_picture() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    convert = srgb_converter(WIDE)
    assert convert is not None
    whole = ImageCms.profileToProfile(
        Image.fromarray(pixels),
        ImageCms.ImageCmsProfile(io.BytesIO(WIDE)),
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
    )
    tiles = np.empty_like(pixels)
    for y, x in np.ndindex(3, 4):
        place = np.s_[32 * y : 32 * y + 32, 32 * x : 32 * x + 32]
        tiles[place] = convert(pixels[place])
    assert np.array_equal(tiles, np.asarray(whole))


def test_threads_share_one_converter() -> None:
    convert = srgb_converter(WIDE)
    assert convert is not None
    rng = np.random.default_rng(1)
    tiles = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(200)]
    expected = [convert(tile) for tile in tiles]
    with ThreadPoolExecutor(8) as threads:
        assert all(map(np.array_equal, threads.map(convert, tiles), expected))


def test_srgb_itself_and_no_profile_need_no_work() -> None:
    assert srgb_converter(None) is None
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert srgb_converter(own) is None


@pytest.mark.parametrize(
    ("profile", "reason"),
    [
        (b"", "damaged"),
        (bytes(range(256)) * 2, "cut off"),
        (WIDE[:-30], "cut off"),
        (bytes(4) + WIDE[4:200], "damaged"),
        (WIDE[:300] + bytes(len(WIDE) - 300), "damaged"),
        (matrix_profile(np.zeros((3, 3)), gamma=2.2), "damaged"),
        (matrix_profile(WIDE_TO_XYZ, gamma=2.2, space=b"GRAY"), "got one of GRAY"),
        (ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(), "got one of Lab"),
    ],
    ids=["empty", "noise", "cut", "no tags", "zeroed", "black", "grey", "lab"],
)
def test_a_profile_that_cannot_be_used_is_an_error_with_the_slides_name(
    profile: bytes, reason: str
) -> None:
    with pytest.raises(SlideError, match=f"a.svs: its ICC profile .*{reason}"):
        srgb_converter(profile, path="a.svs")


def test_a_slide_is_converted_by_its_own_profile(tmp_path: Path) -> None:
    levels = pyramid(300, 200)
    with open_slide(write_tiff(tmp_path / "a.tif", levels, iccprofile=WIDE)) as slide:
        assert slide_converter(slide, "stored") is None
        convert = slide_converter(slide, "srgb")
        assert convert is not None
        pixels = slide.read_region(0, 0, 64, 64)
        assert np.abs(convert(pixels) - in_srgb(pixels, WIDE_TO_XYZ, gamma=1.8)).max() <= 2
        assert slide_converter(slide, "srgb") is convert
        with pytest.raises(ValueError, match="'stored' or 'srgb'; got 'sRGB'"):
            slide_converter(slide, "sRGB")  # type: ignore[arg-type]


def test_tiles_are_converted_after_they_are_resampled(tmp_path: Path) -> None:
    windows = [TileWindow(10, 20, 40, 1.3), TileWindow(250, 150, 40, 0.5)]
    with open_slide(write_tiff(tmp_path / "a.tif", pyramid(300, 200), iccprofile=WIDE)) as slide:
        convert = slide_converter(slide, "srgb")
        assert convert is not None
        stored = read_tiles(slide, windows)
        for tile, plain in zip(read_tiles(slide, windows, colour="srgb"), stored, strict=True):
            assert np.array_equal(tile, convert(plain))


def test_a_slide_without_a_profile_is_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_tiff(tmp_path / "bare.tif", pyramid(300, 200))
    with caplog.at_level(logging.INFO, "anlage"):
        for _ in range(3):
            with open_slide(path) as slide:
                assert slide_converter(slide, "srgb") is None
    assert [r.getMessage() for r in caplog.records if "no ICC profile" in r.getMessage()] == [
        f"{path}: no ICC profile; its pixels stay as they are stored"
    ]


def test_a_damaged_profile_in_a_slide_names_the_slide(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", pyramid(300, 200), iccprofile=WIDE[:200])
    with open_slide(path) as slide, pytest.raises(SlideError, match="a.tif: its ICC profile"):
        slide_converter(slide, "srgb")
