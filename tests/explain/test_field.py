"""The field: a picture's centre square, or exactly the place of a slide that was named."""

import numpy as np
import pytest
from icc_profiles import WIDE_TO_XYZ, in_srgb, matrix_profile
from PIL import Image
from synthetic_slides import pyramid, write_tiff

from anlage import samples
from anlage.errors import ResolutionError, SlideError
from anlage.explain import field
from anlage.explain.field import Field, read_field
from anlage.slides.levels import read_tile
from anlage.slides.reader import open_slide

SLIDE = samples.slides_folder() / "hodgkin__HE.tiff"


def picture(folder, height: int, width: int):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "tile.png")
    return folder / "tile.png", pixels


def test_the_centre_square_of_a_picture(tmp_path) -> None:
    path, pixels = picture(tmp_path, 60, 101)
    found = read_field(path, size_px=999, encoder_mpp=0.5)
    assert np.array_equal(found.pixels, pixels[:, 20:80])
    assert (found.mpp, found.is_stated, found.name) == (0.5, False, "tile.png")
    assert found.edge_um == 30


def test_the_resolution_of_a_picture_may_be_stated(tmp_path) -> None:
    path, _ = picture(tmp_path, 60, 60)
    found = read_field(path, size_px=999, encoder_mpp=0.5, mpp=0.25)
    assert (found.mpp, found.is_stated) == (0.25, True)


def test_a_place_of_a_slide_is_read_at_the_encoders_resolution() -> None:
    found = read_field(SLIDE, size_px=96, encoder_mpp=2.0, at=(100, 50))
    with open_slide(SLIDE) as slide:
        wanted = read_tile(slide, 100, 50, size_px=96, mpp=2.0)
    assert np.array_equal(found.pixels, wanted)
    assert (found.mpp, found.is_stated) == (2.0, True)
    assert found.name == "hodgkin__HE.tiff at 100,50"


def test_a_field_beyond_the_slide_is_told(caplog) -> None:
    read_field(SLIDE, size_px=96, encoder_mpp=2.0, at=(100, 50))
    assert not caplog.records
    found = read_field(SLIDE, size_px=960, encoder_mpp=2.0, at=(100, 50))
    assert "goes beyond the slide" in caplog.text
    assert (found.pixels[-1] == 255).all()


def test_a_place_of_a_slide_is_read_at_the_resolution_asked_for() -> None:
    found = read_field(SLIDE, size_px=64, encoder_mpp=2.0, at=(0, 0), mpp=3.0)
    with open_slide(SLIDE) as slide:
        assert np.array_equal(found.pixels, read_tile(slide, 0, 0, size_px=64, mpp=3.0))


def test_a_slide_too_coarse_for_it_is_refused() -> None:
    with pytest.raises(ResolutionError, match="is too coarse for 0.25"):
        read_field(SLIDE, size_px=64, encoder_mpp=0.25, at=(0, 0))


def test_a_place_outside_the_slide_is_refused() -> None:
    with pytest.raises(SlideError, match="the place 999999,0 is outside"):
        read_field(SLIDE, size_px=64, encoder_mpp=2.0, at=(999999, 0))


def test_a_whole_slide_is_no_picture(monkeypatch) -> None:
    monkeypatch.setattr(field, "LARGEST_PICTURE_PX", 500)
    with pytest.raises(SlideError, match="too many for a picture.*--at X,Y"):
        read_field(SLIDE, size_px=64, encoder_mpp=2.0)


def test_sizes_are_the_same_field() -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, 4:] = 200
    one = Field(name="x", pixels=pixels, mpp=1.0, is_stated=True)
    assert one.at_size(8) is pixels
    assert one.at_size(2)[:, :, 0].tolist() == [[0, 200], [0, 200]]
    assert one.at_size(16).shape == (16, 16, 3)
    assert one.at_size(16)[0, 0, 0] == 0
    assert one.at_size(16)[0, -1, 0] == 200


def test_a_slide_is_read_in_the_colours_of_the_encoder(tmp_path) -> None:
    wide = matrix_profile(WIDE_TO_XYZ, gamma=1.8)
    path = write_tiff(tmp_path / "a.tif", pyramid(300, 200), iccprofile=wide)
    with open_slide(path) as slide:
        mpp = slide.mpp
    stored, srgb = (
        read_field(path, size_px=64, encoder_mpp=mpp, at=(9, 5), colour=colour).pixels
        for colour in ("stored", "srgb")
    )
    wanted = in_srgb(stored, WIDE_TO_XYZ, gamma=1.8)
    assert np.abs(srgb - wanted).max() <= 2 < np.abs(stored - wanted).max()
