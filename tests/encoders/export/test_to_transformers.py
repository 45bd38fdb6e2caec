"""transformers opens the folder by its documented way and gives the same embedding."""

import pytest
import torch
from PIL import Image
from small_encoder import make_pixels
from transformers import AutoImageProcessor, AutoModel, Dinov2Model, Dinov2WithRegistersModel
from weighty_encoder import VARIANTS, weighty_encoder

from anlage.encoders.encoder_sizes import encoder_sizes
from anlage.encoders.export.export_encoder import export_encoder
from anlage.encoders.export.to_transformers import whole_ratio
from anlage.errors import EncoderError
from anlage.models.sizes import SIZES
from anlage.models.vit import VisionTransformer
from anlage.models.without_weights import without_weights


def opened(folder):
    return AutoModel.from_pretrained(folder, local_files_only=True).eval()


def pictures(pixels_B3HW):
    return [Image.fromarray(tile.permute(1, 2, 0).numpy()) for tile in pixels_B3HW]


WHOLE = [name for name in VARIANTS if "mlp_ratio" not in VARIANTS[name]]


@pytest.mark.parametrize("variant", WHOLE)
@torch.no_grad()
def test_transformers_gives_the_same_embedding(tmp_path, variant) -> None:
    encoder = weighty_encoder(**VARIANTS[variant])
    written = export_encoder(encoder, tmp_path / "out", to="hf")
    pixels = make_pixels(3)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    model = opened(tmp_path / "out")
    kind = Dinov2WithRegistersModel if encoder.model.n_registers else Dinov2Model
    assert isinstance(model, kind)
    found = model(**processor(pictures(pixels), return_tensors="pt")).pooler_output
    torch.testing.assert_close(found, encoder.embed(pixels), atol=1e-5, rtol=1e-5)
    assert "Opened with transformers" in written.checked


@pytest.mark.parametrize("antialias", [True, False])
@torch.no_grad()
def test_positions_are_brought_to_the_grid_of_the_tiles(tmp_path, antialias) -> None:
    encoder = weighty_encoder(tile_px=24, antialias=antialias, norm_eps=0.01)
    written = export_encoder(encoder, tmp_path / "out", to="hf")
    assert "from 4 x 4 patches to those of 24 px" in written.notes[0]
    pixels = make_pixels(2, size_px=24)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    found = opened(tmp_path / "out")(**processor(pictures(pixels), return_tensors="pt"))
    torch.testing.assert_close(found.pooler_output, encoder.embed(pixels), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_card_shows_how_to_pool_the_mean_as_well(tmp_path) -> None:
    encoder = weighty_encoder(pooling="cls+mean")
    written = export_encoder(encoder, tmp_path / "out", to="hf")
    namespace = {"tile": pictures(make_pixels(1))[0]}
    exec(written.usage.replace("FOLDER", str(tmp_path / "out")), namespace)
    torch.testing.assert_close(
        namespace["embedding"], encoder.embed(make_pixels(1)), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("architecture", "says"),
    [
        ({"dual_patch_norm": True}, "before the patch projection"),
        ({"qk_norm": True}, "queries and keys"),
        ({"mlp_ratio": 2.7}, "whole mlp ratios alone, and no such one makes its mlp 64 wide"),
        ({"mlp_ratio": 2.7, "qk_norm": True}, r"queries and keys \(QK norm\); Dinov2 has whole"),
    ],
)
def test_what_dinov2_has_not_is_refused_with_the_reason(tmp_path, architecture, says) -> None:
    with pytest.raises(EncoderError, match=f"{says}.*--to safetensors"):
        export_encoder(weighty_encoder(**architecture), tmp_path / "out", to="hf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", SIZES)
def test_whole_ratios_of_published_sizes(name) -> None:
    """All of them but Virchow2G's have one."""
    size = dict(SIZES[name])
    with without_weights():
        sizes = encoder_sizes(VisionTransformer(**size).state_dict(), path=name)
    wanted = None if size["mlp_ratio"] % 1 else int(size["mlp_ratio"])
    assert whole_ratio(sizes) == wanted
