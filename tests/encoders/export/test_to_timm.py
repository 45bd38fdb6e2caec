"""timm opens the folder by its documented way and gives the same embedding."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from small_encoder import make_pixels
from timm.data import create_transform, resolve_model_data_config
from weighty_encoder import VARIANTS, weighty_encoder

from anlage.encoders.export.export_encoder import export_encoder
from anlage.encoders.export.to_timm import ratio_for
from anlage.errors import EncoderError


def as_timm_users_do(folder, pixels_B3HW):
    """Model and transform as timm's own page loads them, from pictures."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    pictures = [Image.fromarray(tile.permute(1, 2, 0).numpy()) for tile in pixels_B3HW]
    return model, torch.stack([transform(picture) for picture in pictures])


@pytest.mark.parametrize("variant", [*VARIANTS, "QK norm"])
@torch.no_grad()
def test_timm_gives_the_same_embedding(tmp_path, variant) -> None:
    encoder = weighty_encoder(**VARIANTS.get(variant, {"qk_norm": True}))
    written = export_encoder(encoder, tmp_path / "out", to="timm")
    pixels = make_pixels(3)
    model, image = as_timm_users_do(tmp_path / "out", pixels)
    wanted = encoder.embed(pixels)
    torch.testing.assert_close(model(image), wanted, atol=1e-5, rtol=1e-5)
    assert wanted.std() > 0.1
    assert "Opened with timm" in written.checked


@pytest.mark.parametrize("antialias", [True, False])
@torch.no_grad()
def test_tiles_of_another_size_than_the_position_grid(tmp_path, antialias) -> None:
    encoder = weighty_encoder(tile_px=24, antialias=antialias)
    written = export_encoder(encoder, tmp_path / "out", to="timm")
    assert len(written.notes) == (0 if antialias else 1)
    model, image = as_timm_users_do(tmp_path / "out", make_pixels(2, size_px=24))
    assert image.shape == (2, 3, 24, 24)
    wanted = encoder.embed(make_pixels(2, size_px=24))
    torch.testing.assert_close(model(image), wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_card_shows_how_to_pool_the_mean_as_well(tmp_path) -> None:
    encoder = weighty_encoder(pooling="cls+mean")
    written = export_encoder(encoder, tmp_path / "out", to="timm")
    assert "must add as shown" in written.notes[0]
    pixels = make_pixels(1)
    tile = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
    namespace = {"tile": tile, "torch": torch}
    exec(written.usage.replace("FOLDER", str(tmp_path / "out")), namespace)
    torch.testing.assert_close(namespace["embedding"], encoder.embed(pixels), atol=1e-5, rtol=1e-5)


def test_the_transform_is_in_the_folder(tmp_path) -> None:
    export_encoder(weighty_encoder(), tmp_path / "out", to="timm")
    told = json.loads((tmp_path / "out" / "config.json").read_text())["pretrained_cfg"]
    assert told["mean"] == [0.7, 0.5, 0.6]
    assert told["std"] == [0.2, 0.25, 0.3]
    assert told["input_size"] == [3, 32, 32]


def test_dual_patch_norm_is_refused_with_the_reason(tmp_path) -> None:
    with pytest.raises(EncoderError, match=r"no norm before the patch projection.*--to onnx"):
        export_encoder(weighty_encoder(dual_patch_norm=True), tmp_path / "out", to="timm")
    assert list(tmp_path.iterdir()) == []


def test_another_epsilon_is_refused_with_the_reason(tmp_path) -> None:
    with pytest.raises(EncoderError, match=r"have an epsilon of 1e-06, these 1e-12"):
        export_encoder(weighty_encoder(norm_eps=1e-12), tmp_path / "out", to="timm")


@pytest.mark.parametrize("width", [24, 384, 1280, 1536, 1664])
def test_a_ratio_is_found_for_every_hidden_width(width) -> None:
    for hidden in np.random.default_rng(0).integers(1, 9 * width, 500).tolist():
        assert int(width * ratio_for(hidden, width=width)) == hidden
    assert ratio_for(4 * width, width=width) == 4
