from __future__ import annotations

import tracemalloc
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from synthetic_slides import tissue_like

from anlage.errors import ResolutionError, SlideError
from anlage.slides.formats import image_reader
from anlage.slides.formats.image_reader import ImageReader
from anlage.slides.reader import UnknownFormatError

PICTURE = tissue_like(90, 60)


def test_pixels_of_a_jpeg(tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.jpg", quality=95, dpi=(96, 96), icc_profile=b"icc!")
    with ImageReader(str(tmp_path / "a.jpg"), mpp=0.5) as slide:
        whole = slide.read_region(0, 0, 90, 60)
        assert np.array_equal(whole, np.array(Image.open(tmp_path / "a.jpg")))
        assert (slide.vendor, slide.mpp, slide.icc_profile) == ("jpeg", 0.5, b"icc!")
        assert [(level.width, level.height, level.downsample) for level in slide.levels] == [
            (90, 60, 1.0)
        ]
        with pytest.raises(SlideError, match="no associated picture 'macro'"):
            slide.read_associated("macro")


def test_its_dots_per_inch_are_no_resolution(tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.png", dpi=(50800, 50800))
    with ImageReader(str(tmp_path / "a.png")) as slide:
        assert slide.resolution is None
        with pytest.raises(ResolutionError, match="mpp="):
            slide.mpp  # noqa: B018


def test_transparent_is_white(tmp_path: Path) -> None:
    rgba = np.dstack([PICTURE, np.full(PICTURE.shape[:2], 255, np.uint8)])
    rgba[:30, :, 3] = 0
    rgba[30:40, :, 3] = 51
    Image.fromarray(rgba).save(tmp_path / "a.png")
    with ImageReader(str(tmp_path / "a.png")) as slide:
        got = slide.read_region(0, 0, 90, 60).astype(float)
    assert (got[:30] == 255).all()
    assert np.abs(got[30:40] - (0.2 * PICTURE[30:40] + 0.8 * 255)).max() <= 1
    assert np.array_equal(got[40:], PICTURE[40:])


@pytest.mark.parametrize(
    ("mode", "transparent"), [("L", None), ("P", None), ("1", None), ("LA", None), ("P", 3)]
)
def test_grey_and_palette_become_rgb(tmp_path: Path, mode: str, transparent: int | None) -> None:
    picture = Image.fromarray(PICTURE).convert("RGB").convert(mode)
    picture.save(tmp_path / "a.png", transparency=transparent)
    with Image.open(tmp_path / "a.png") as stored:
        rgba = stored.convert("RGBA")
    with ImageReader(str(tmp_path / "a.png")) as slide:
        white = Image.new("RGBA", rgba.size, "white")
        expected = np.array(Image.alpha_composite(white, rgba).convert("RGB"))
        assert np.array_equal(slide.read_region(0, 0, 90, 60), expected)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_cut_picture(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    Image.fromarray(PICTURE).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(SlideError, match="cannot be decoded"):
        ImageReader(str(path))


def test_sixteen_bits_and_cmyk_are_refused_by_name(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(SlideError, match=r"8-bit colour or grey; got Pillow mode I;16"):
        ImageReader(str(tmp_path / "a.png"))
    Image.new("CMYK", (9, 9)).save(tmp_path / "b.jpg")
    with pytest.raises(SlideError, match="got Pillow mode CMYK"):
        ImageReader(str(tmp_path / "b.jpg"))


def test_sixteen_bits_of_colour_are_refused(tmp_path: Path) -> None:
    deep = imagecodecs.png_encode(PICTURE.astype(np.uint16) * 256)
    (tmp_path / "a.png").write_bytes(deep)
    with pytest.raises(SlideError, match="samples of 16 bits"):
        ImageReader(str(tmp_path / "a.png"))


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_damage_within_a_picture(tmp_path: Path, name: str) -> None:
    """Pillow itself returns wrong pixels for these and says nothing."""
    path = tmp_path / name
    Image.fromarray(PICTURE).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    with pytest.raises(SlideError, match="cannot be decoded"):
        ImageReader(str(path))


def test_too_large_to_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    monkeypatch.setattr(image_reader, "MAX_PX", 90 * 60 - 1)
    with pytest.raises(SlideError, match=r"at most 5399 pixels .* got 90 x 60\. Convert"):
        ImageReader(str(tmp_path / "a.png"))


def test_a_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(SlideError, match="decompression bomb"):
        ImageReader(str(tmp_path / "a.png"))


def test_another_format_is_left_to_others(tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.bmp")
    with pytest.raises(UnknownFormatError, match="neither PNG nor JPEG"):
        ImageReader(str(tmp_path / "a.bmp"))


def test_a_large_transparent_picture_takes_little_more_than_itself() -> None:
    alpha = np.random.default_rng(0).integers(0, 256, (2000, 300, 1), dtype=np.uint8)
    colour = tissue_like(300, 2000)
    expected = (colour.astype(float) * alpha + 255.0 * (255 - alpha.astype(float))) / 255
    tracemalloc.start()
    try:
        shown = image_reader.over_white(colour, alpha)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert np.abs(shown - expected).max() <= 0.5 + 1e-9
    assert peak < 4 * colour.nbytes
