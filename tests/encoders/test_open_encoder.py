"""One door to encoders: what each form of a name opens, and what is said of those that do not."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import timm
import torch
from published_presets import smaller, stand_in
from safetensors.torch import load_file, save_file
from small_encoder import make_encoder, make_pixels

from anlage.encoders import hub
from anlage.encoders import open_encoder as door
from anlage.encoders.folder import save_encoder
from anlage.encoders.open_encoder import open_encoder
from anlage.encoders.presets import PRESETS
from anlage.errors import DeviceError, EncoderError

SHALLOW = "kaiko-vits16"


@pytest.fixture
def shallow(monkeypatch, tmp_path) -> Path:
    """Two presets one block deep, and the weight file of the first."""
    small = {name: smaller(PRESETS[name], depth=1) for name in (SHALLOW, "virchow2")}
    small["conch-v1.5"] = PRESETS["conch-v1.5"]
    monkeypatch.setattr(door, "PRESETS", small)
    monkeypatch.setattr("anlage.encoders.preset_encoder.cached_file", lambda _: None)
    return stand_in(small[SHALLOW], tmp_path).file


def damaged(file: Path, **changes: torch.Tensor | None) -> Path:
    weights = {**load_file(file), **{name: t for name, t in changes.items() if t is not None}}
    for name in [name for name, tensor in changes.items() if tensor is None]:
        del weights[name]
    save_file(weights, file.with_name("damaged.safetensors"))
    return file.with_name("damaged.safetensors")


def test_a_folder_and_a_bundled_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encoder = make_encoder()
    save_encoder(tmp_path / "e", encoder.model, encoder.config)
    assert open_encoder("e").fingerprint == encoder.fingerprint
    assert open_encoder(tmp_path / "e").fingerprint == encoder.fingerprint
    assert open_encoder("anlage-tiny").width == 192


def test_a_preset_with_its_file(shallow, caplog):
    hub._tell_once.cache_clear()
    with caplog.at_level(logging.INFO, "anlage"):
        encoder = open_encoder(f"{SHALLOW}={shallow}")
        open_encoder(Path(f"{SHALLOW}={shallow}"))
    told = [record.message for record in caplog.records if "licence" in record.message]
    assert len(told) == 1
    assert "kaiko non-commercial" in told[0]
    assert encoder.config.provenance["file"] == str(shallow)
    assert encoder.config.provenance["verified"]
    assert encoder.untrained(3).width == encoder.width == 384
    assert encoder.patch_tokens(make_pixels(1, size_px=224)).shape == (1, 196, 384)


def test_a_preset_from_the_hubs_cache(shallow, monkeypatch):
    found = hub.HubFile(shallow, "model.safetensors", "abc")
    monkeypatch.setattr("anlage.encoders.preset_encoder.cached_file", lambda _: found)
    told = open_encoder(SHALLOW).config.provenance
    assert (told["file"], told["revision"]) == ("model.safetensors", "abc")


def test_another_resolution_is_taken_and_marked(shallow, caplog):
    with caplog.at_level(logging.WARNING, "anlage"):
        assert open_encoder(f"{SHALLOW}@1.0={shallow}").config.mpp == 1.0
        assert not caplog.records
        encoder = open_encoder(f"{SHALLOW}@4={shallow}")
    assert "used at 4 mpp, and was trained at 0.25, 0.5, 1, 2" in caplog.text
    assert encoder.config.mpp == 4.0
    assert encoder.fingerprint != open_encoder(f"{SHALLOW}={shallow}").fingerprint


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"blocks.0.mlp.fc1.bias": None}, r"lacks tensor 'blocks.0.mlp.fc1.bias', which kaiko"),
        ({"blocks.0.attn.qkv.bias": None}, r"lacks tensor 'blocks.0.attn.qkv.bias'"),
        ({"blocks.0.extra": torch.ones(3)}, r"an unknown tensor 'blocks.0.extra'"),
        ({"norm.weight": torch.full((384,), torch.nan)}, r"'norm.weight' holds NaN"),
        ({"norm.weight": torch.ones(5)}, r"'norm.weight' of shape \(5,\) for \(384,\)"),
        ({"blocks.1.norm1.weight": torch.ones(384)}, r"it has depth 2, and kaiko-vits16 1"),
        ({"blocks.0.ls1.gamma": torch.ones(384)}, r"has_layer_scale True, and kaiko-vits16 False"),
        ({"pos_embed": torch.ones(1, 145, 384)}, r"it has grid \(12, 12\), and .* \(14, 14\)"),
    ],
)
def test_weights_that_are_not_exactly_the_presets_are_refused(shallow, changes, says):
    with pytest.raises(EncoderError, match=says):
        open_encoder(f"{SHALLOW}={damaged(shallow, **changes)}")


def test_weights_of_another_model_are_refused(shallow):
    with pytest.raises(EncoderError, match=r"another model: it has width 384, and virchow2 1280"):
        open_encoder(f"virchow2={shallow}")


def test_truncated_weights_are_refused(shallow):
    shallow.write_bytes(shallow.read_bytes()[:-1000])
    with pytest.raises(EncoderError, match="not a whole safetensors file .* download it again"):
        open_encoder(f"{SHALLOW}={shallow}")


class Runs:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_that_would_run_code_is_refused(shallow, tmp_path):
    weights = {**load_file(shallow), "meta": Runs(tmp_path / "ran")}
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(EncoderError, match="could run code"):
        open_encoder(f"{SHALLOW}={tmp_path / 'pytorch_model.bin'}")
    assert not (tmp_path / "ran").exists()


def test_a_missing_file_and_a_folder_without_config(shallow, tmp_path):
    with pytest.raises(EncoderError, match="no such weight file"):
        open_encoder(f"{SHALLOW}={tmp_path / 'nowhere.bin'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(EncoderError, match=r"empty: holds no config.json.*RUN/encoder"):
        open_encoder(tmp_path / "empty")


def test_a_name_that_is_a_folder_too_is_not_guessed_at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encoder = make_encoder()
    save_encoder("uni", encoder.model, encoder.config)
    with pytest.raises(EncoderError, match="uni: is an encoder folder here, and the name of a"):
        open_encoder("uni")


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ("virchov2", "Did you mean virchow2.*anlage encoders"),
        ("nowhere/encoder", "no such encoder folder or name"),
        ("unknown=file.bin", "no such encoder"),
        ("UNI", "Did you mean uni"),
        ("", "needs the name of an encoder; got nothing"),
        ("weights.bin", "is a weight file.*NAME=weights.bin"),
        ("timm:resnet10t", "at which resolution.*timm:resnet10t@0.5"),
        ("hf:owner/model", "hf:owner/model@0.5"),
    ],
)
def test_unknown_names_are_told_the_known_forms(named, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("weights.bin").touch()
    with pytest.raises(EncoderError, match=says):
        open_encoder(named)


def test_code_of_others_runs_only_when_asked_to(shallow):
    with pytest.raises(EncoderError, match=r"conch-v1.5: runs by code .*--trust-remote-code"):
        open_encoder("conch-v1.5")
    with pytest.raises(EncoderError, match="loads its own weights"):
        open_encoder(f"conch-v1.5={shallow}")


def test_a_device_that_is_not_there_is_refused_before_a_download():
    with pytest.raises(DeviceError):
        open_encoder("uni", device="cuda:99")


@pytest.fixture
def timm_without_network(monkeypatch):
    create = timm.create_model

    def made(name: str, *, pretrained: bool, **options: object) -> torch.nn.Module:
        assert pretrained
        torch.manual_seed(0)
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", made)


@pytest.mark.parametrize(
    ("name", "width", "n_patches"),
    [("resnet10t", 512, 0), ("vit_tiny_patch16_224", 192, 196), ("mobilenetv3_small_050", 1024, 0)],
)
def test_any_model_of_timm_by_its_own_forward(timm_without_network, name, width, n_patches):
    encoder = open_encoder(f"timm:{name}@0.5")
    told = timm.data.resolve_model_data_config(encoder.network.network)
    pixels = make_pixels(2, size_px=encoder.config.tile_px)
    mean, std = (torch.tensor(told[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        wanted = encoder.network.network((pixels / 255 - mean) / std)
    found = encoder.embed(pixels)
    assert found.shape == (2, encoder.width) == (2, width)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert encoder.config.tile_px == told["input_size"][1]
    assert encoder.config.architecture == {"timm": name}
    assert encoder.fingerprint == open_encoder(f"timm:{name}@0.5").fingerprint
    if n_patches:
        assert encoder.patch_tokens(pixels).shape == (2, n_patches, width)
    else:
        assert encoder.patch_px is None
    assert encoder.untrained(1).fingerprint != encoder.fingerprint


def test_a_model_timm_does_not_know():
    with pytest.raises(EncoderError, match=r"timm:nosuch: timm cannot load it .*list_pretrained"):
        open_encoder("timm:nosuch@0.5")


OWN = """
import torch

class Net(torch.nn.Module):
    tile_px, mpp, mean, std, width = 32, 0.5, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), 5
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3, 5)
    def forward(self, image):
        return self.layer(image.mean((2, 3)))

FACTS = {"tile_px": 32, "mpp": 1.0, "mean": (0, 0, 0), "std": (1, 1, 1), "width": 3}
def module(): return Net()
def function(): return (lambda image: image.mean((2, 3))), FACTS
def no_width(): return (lambda image: image.mean((2, 3))), {**FACTS, "width": None}
def wrong_width(): return (lambda image: image.mean((2, 3))), {**FACTS, "width": 4}
def width_in_words(): return Net(), {**FACTS, "width": "five"}
def leaves(): raise SystemExit(0)
def raises(image): raise RuntimeError("no such layer")
def fails_later(): return raises, FACTS
def absurd(): return (lambda image: image), {**FACTS, "mpp": -1}
def nothing(): return None
def fails(): raise RuntimeError("no licence key")
"""


@pytest.fixture
def own(tmp_path) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path / "own.py"


def test_a_module_that_a_function_of_the_user_makes(own, monkeypatch):
    encoder, pixels = open_encoder(f"{own}:module"), make_pixels(3)
    layer = encoder.network.network.layer
    with torch.no_grad():
        wanted = layer(((pixels / 255 - 0.5) / 0.25).mean((2, 3)))
    torch.testing.assert_close(encoder.embed(pixels), wanted)
    assert encoder.fingerprint == open_encoder(f"{own}:module").fingerprint
    monkeypatch.syspath_prepend(str(own.parent))
    assert torch.equal(open_encoder("own:module").embed(pixels), encoder.embed(pixels))


def test_a_function_that_a_function_of_the_user_makes(own):
    encoder, pixels = open_encoder(f"{own}:function"), make_pixels(3)
    torch.testing.assert_close(encoder.embed(pixels), (pixels / 255).mean((2, 3)))
    before = encoder.fingerprint
    own.write_text(OWN + "\n# changed\n")
    assert open_encoder(f"{own}:function").fingerprint != before


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("no_width", "does not state width"),
        ("absurd", "states mpp = -1"),
        ("width_in_words", "states width = 'five'"),
        ("leaves", "leaves failed .SystemExit: 0"),
        ("nothing", "needs a torch module or a callable.*got NoneType"),
        ("fails", "fails failed .RuntimeError: no licence key"),
        ("gone", "has no function 'gone'"),
    ],
)
def test_functions_that_make_no_encoder_are_refused(own, function, says):
    with pytest.raises(EncoderError, match=says):
        open_encoder(f"{own}:{function}")


def test_a_function_that_gives_another_width(own):
    with pytest.raises(EncoderError, match=r"shape \(2, 4\); gave shape \(2, 3\)"):
        open_encoder(f"{own}:wrong_width").embed(make_pixels(2))


def test_a_function_that_fails_on_images_is_told_with_its_line(own):
    line = next(n for n, text in enumerate(OWN.splitlines(), 1) if "no such layer" in text)
    says = rf"raises: failed on \(2, 3, 32, 32\) .*RuntimeError: no such layer; line {line} of"
    with pytest.raises(EncoderError, match=says):
        open_encoder(f"{own}:fails_later").embed(make_pixels(2))


def test_code_that_is_not_there_or_broken(tmp_path):
    with pytest.raises(EncoderError, match=r"no such file .*gone.py"):
        open_encoder(f"{tmp_path}/gone.py:f")
    (tmp_path / "broken.py").write_text("def f(:\n")
    with pytest.raises(EncoderError, match=r"cannot be imported .SyntaxError"):
        open_encoder(f"{tmp_path}/broken.py:f")
    with pytest.raises(EncoderError, match=r"cannot be imported .ModuleNotFoundError"):
        open_encoder("no_such_module:f")


def test_a_model_of_timms_that_lacks_a_tensor_is_refused(tmp_path):
    """Asked for other classes than the file has, timm would load leniently."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3, depth=1)
    weights = model.state_dict()
    told = {"architecture": "vit_tiny_patch16_224", "num_classes": 3}
    told["model_args"] = {"img_size": 32, "depth": 1}
    told["pretrained_cfg"] = {"num_classes": 3, "input_size": [3, 32, 32]}
    (tmp_path / "config.json").write_text(json.dumps(told))
    save_file(weights, tmp_path / "model.safetensors")
    assert open_encoder(f"timm:local-dir:{tmp_path}@0.5").width == 192
    del weights["norm.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(EncoderError, match="in loading state_dict"):
        open_encoder(f"timm:local-dir:{tmp_path}@0.5")
