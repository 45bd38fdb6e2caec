"""Models of transformers by their own code: tiny ones in folders, as the hub would hold them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from published_presets import randomised
from small_encoder import make_pixels

from anlage.encoders.open_encoder import open_encoder
from anlage.errors import EncoderError

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32}
LOOKS = {
    "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
    "size": {"shortest_edge": 40},
    "image_mean": [0.7, 0.5, 0.6],
    "image_std": [0.2, 0.25, 0.3],
}
KINDS = {
    "Dinov2": {"patch_size": 8, "use_swiglu_ffn": True},
    "Dinov2WithRegisters": {"patch_size": 8, "num_register_tokens": 4},
    "ViT": {"patch_size": 8, "intermediate_size": 32},
}


def saved(folder: Path, kind: str, **looks: object) -> torch.nn.Module:
    import transformers

    config = getattr(transformers, f"{kind}Config")(**SIZES, **KINDS[kind])
    model = randomised(getattr(transformers, f"{kind}Model")(config))
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(LOOKS | looks))
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_the_class_token_of_a_models_own_forward(kind, tmp_path):
    model, pixels = saved(tmp_path, kind), make_pixels(3)
    encoder = open_encoder(f"hf:{tmp_path}@0.5")
    mean, std = (torch.tensor(LOOKS[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
    with torch.no_grad():
        hidden = model(pixel_values=(pixels / 255 - mean) / std).last_hidden_state
    torch.testing.assert_close(encoder.embed(pixels), hidden[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encoder.patch_tokens(pixels), hidden[:, -16:], atol=1e-5, rtol=1e-5)
    assert (encoder.width, encoder.patch_px, encoder.config.tile_px) == (16, 8, 32)
    assert encoder.fingerprint == open_encoder(f"hf:{tmp_path}@0.5").fingerprint
    assert encoder.untrained(0).fingerprint != encoder.fingerprint


def test_a_feature_map_is_averaged(tmp_path):
    import transformers

    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1])
    transformers.ResNetModel(config).eval().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(LOOKS))
    encoder = open_encoder(f"hf:{tmp_path}@1.0")
    assert encoder.embed(make_pixels(2)).shape == (2, 12)
    assert encoder.patch_px is None


def test_weights_that_lack_a_tensor_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    saved(tmp_path, "Dinov2")
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layer.1.norm1.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EncoderError, match="weights lack 'encoder.layer.1.norm1.weight'"):
        open_encoder(f"hf:{tmp_path}@0.5")


def test_half_weights_compute_in_the_precision_asked_for(tmp_path):
    saved(tmp_path, "Dinov2").bfloat16().save_pretrained(tmp_path)
    encoder = open_encoder(f"hf:{tmp_path}@0.5", precision="fp32")
    assert {p.dtype for p in encoder.network.parameters()} == {torch.float32}
    found = encoder.embed(make_pixels(2))
    assert (found.bfloat16() != found).any()


def test_a_configuration_is_part_of_the_fingerprint(tmp_path):
    saved(tmp_path, "Dinov2")
    before = open_encoder(f"hf:{tmp_path}@0.5").fingerprint
    told = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(told | {"layer_norm_eps": 0.1}))
    assert open_encoder(f"hf:{tmp_path}@0.5").fingerprint != before


def test_a_model_that_masks_patches_is_refused(tmp_path):
    import transformers

    config = transformers.ViTMAEConfig(**SIZES, patch_size=8, intermediate_size=32)
    transformers.ViTMAEModel(config).eval().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(LOOKS))
    encoder = open_encoder(f"hf:{tmp_path}@0.5")
    with pytest.raises(EncoderError, match="gives 5 tokens of 16 patches"):
        encoder.embed(make_pixels(2))


def test_a_processor_that_says_no_size_is_refused(tmp_path):
    saved(tmp_path, "ViT", crop_size=None)
    with pytest.raises(EncoderError, match="no square size.*file.py:function"):
        open_encoder(f"hf:{tmp_path}@0.5")


@pytest.mark.parametrize("looks", [{"do_normalize": False}, {"rescale_factor": 1 / 127.5}])
def test_a_processor_that_normalises_otherwise_is_refused(looks, tmp_path):
    saved(tmp_path, "ViT", **looks)
    with pytest.raises(EncoderError, match="does not take mean and deviation"):
        open_encoder(f"hf:{tmp_path}@0.5")


CODE = """
from pathlib import Path
from transformers import PretrainedConfig, PreTrainedModel
import torch
Path({ran!r}).touch()

class OwnConfig(PretrainedConfig):
    model_type = "own"

class OwnModel(PreTrainedModel):
    config_class = OwnConfig
    def __init__(self, config):
        super().__init__(config)
        self.layer = torch.nn.Linear(3, 16)
        self.post_init()
    def forward(self, pixel_values):
        tokens = pixel_values.flatten(2).transpose(1, 2)
        return type("Out", (), {{"last_hidden_state": self.layer(tokens)}})
"""


def test_code_in_a_repository_runs_only_when_trusted(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, ran = tmp_path / "own_repo", tmp_path / "ran"
    folder.mkdir()
    (folder / "own.py").write_text(CODE.format(ran=str(ran)))
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    told = {"model_type": "own", "auto_map": auto_map, "hidden_size": 16}
    (folder / "config.json").write_text(json.dumps(told))
    (folder / "preprocessor_config.json").write_text(json.dumps(LOOKS))
    weights = {"layer.weight": torch.randn(16, 3), "layer.bias": torch.randn(16)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EncoderError, match="--trust-remote-code"):
        open_encoder(f"hf:{folder}@0.5")
    assert not ran.exists()
    encoder = open_encoder(f"hf:{folder}@0.5", trust_remote_code=True)
    assert ran.exists()
    assert encoder.embed(make_pixels(2)).shape == (2, 16)


@pytest.mark.parametrize(
    ("name", "width", "px"), [("conch-v1.5", 768, 448), ("genbio-pathfm", 4608, 224)]
)
def test_presets_of_their_authors_code(name, width, px, monkeypatch):
    """What their code gives is that of its stand-in here: theirs has not been run."""
    import transformers

    class Conch(torch.nn.Module):
        def forward(self, image):
            return image.mean((2, 3)).repeat(1, width // 3)

    class Titan(torch.nn.Module):
        def return_conch(self):
            return Conch(), "its transform"

    def from_pretrained(repo, *, trust_remote_code, **_):
        assert trust_remote_code
        loaded = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}
        return (Titan() if "TITAN" in repo else Conch()), loaded

    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", from_pretrained)
    encoder = open_encoder(name, trust_remote_code=True)
    assert encoder.embed(make_pixels(1, size_px=px)).shape == (1, width)
    assert encoder.config.tile_px == px
    assert encoder.config.provenance["verified"] is None
    assert encoder.config.pooling == "own"
