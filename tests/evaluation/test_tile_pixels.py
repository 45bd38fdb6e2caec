import numpy as np
import pytest
from PIL import Image

from anlage.errors import LabelledDataError
from anlage.evaluation.tile_pixels import fit_tile, read_tile_file


def test_same_mpp_is_a_plain_centre_crop(generator) -> None:
    pixels = generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    fitted, how = fit_tile(pixels, tile_px=32, shrink=1.0)
    np.testing.assert_array_equal(fitted, pixels[4:36, 9:41])
    assert how == "cropped at mpp"


def test_a_whole_ratio_is_the_block_mean(generator) -> None:
    pixels = generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    fitted, how = fit_tile(pixels, tile_px=32, shrink=2.0)
    mean = pixels.reshape(32, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(fitted - mean).max() <= 0.5
    assert how == "cropped at mpp"


def test_a_broken_ratio_is_kept_exactly() -> None:
    """Shrink 2.3: pixel i of the result covers 2.3 i to 2.3 (i + 1) of a linear ramp."""
    ramp = np.broadcast_to(np.arange(100, dtype=np.uint8)[None, :, None] * 2, (100, 100, 3))
    fitted, _ = fit_tile(np.ascontiguousarray(ramp), tile_px=41, shrink=2.3)  # 43 after; crop 1
    expected = 2 * (2.3 * (np.arange(41) + 1 + 0.5) - 0.5)
    assert np.abs(fitted[20, :, 0] - expected).max() <= 1.0
    assert abs((fitted[20, :, 0] - expected).mean()) <= 0.3


@pytest.mark.parametrize(("height", "width"), [(64, 64), (50, 90), (20, 30), (7, 224)])
@pytest.mark.parametrize("shrink", [None, 9.0])
def test_unknown_mpp_or_too_small_is_resized_by_the_shorter_side(height, width, shrink) -> None:
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[:, width // 2 :] = 200
    fitted, how = fit_tile(pixels, tile_px=32, shrink=shrink)
    assert how == "resized"
    assert fitted.shape == (32, 32, 3)
    assert fitted[16, 2, 0] == 0
    assert fitted[16, 29, 0] == 200


def test_just_large_enough_is_cropped() -> None:
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    assert fit_tile(pixels, tile_px=32, shrink=2.0)[1] == "cropped at mpp"
    assert fit_tile(pixels, tile_px=32, shrink=2.1)[1] == "resized"
    assert fit_tile(pixels, tile_px=32, shrink=0.5)[0].shape == (32, 32, 3)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA"])
def test_eight_bit_images_become_rgb(tmp_path, mode) -> None:
    Image.new("RGB", (4, 3), (204, 204, 204)).convert(mode).save(tmp_path / "a.png")
    pixels = read_tile_file(tmp_path / "a.png")
    assert pixels.shape == (3, 4, 3)
    assert (pixels == 204).all()


def test_transparent_is_white(tmp_path) -> None:
    Image.new("RGBA", (4, 4), (9, 9, 9, 0)).save(tmp_path / "a.png")
    assert (read_tile_file(tmp_path / "a.png") == 255).all()


def test_refuses_damage_and_sixteen_bits(tmp_path, generator) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(generator.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(LabelledDataError, match=r"a\.png: cannot be decoded: .*Replace the file"):
        read_tile_file(path)
    path.write_text("no image")
    with pytest.raises(LabelledDataError, match="cannot be decoded"):
        read_tile_file(path)
    Image.fromarray(np.full((4, 4), 60000, dtype=np.uint16)).save(path)
    with pytest.raises(LabelledDataError, match="needs 8 bits a channel; got mode I;16"):
        read_tile_file(path)
