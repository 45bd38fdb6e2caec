"""Training starts from a folder, a file or timm: the same function, its source on record."""

import hashlib
import json
import sys
from functools import partial

import pytest
import timm
import torch
from published_weights import (
    KINDS,
    SIZES,
    architecture,
    assert_same_function,
    hub_named,
    loaded,
    theirs,
)
from safetensors.torch import save_file
from small_encoder import ARCHITECTURE, make_encoder, make_pixels
from timm.layers import GluMlp
from timm.models.vision_transformer import ResPostBlock

from anlage.encoders.folder import load_encoder, save_encoder
from anlage.encoders.starting_weights import starting_weights
from anlage.encoders.tile_encoder import weights_sha256
from anlage.errors import EncoderError

DINO = "vit_small_patch16_224.dino"
REGISTERS = "vit_large_patch14_reg4_dinov2"


def timm_folder(folder, kind, weights=None, **model_args):
    """A folder as timm's hub holds it; ``timm:local-dir:FOLDER`` reads it as a download."""
    folder.mkdir()
    model_args = {"img_size": KINDS[kind]["img_size"], **SIZES, **model_args}
    config = {
        "architecture": kind.partition(".")[0],
        "num_classes": 0,
        "model_args": model_args,
        "pretrained_cfg": {"license": "apache-2.0", "num_classes": 0},
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        theirs(kind).state_dict() if weights is None else weights, folder / "model.safetensors"
    )
    return f"timm:local-dir:{folder}"


@pytest.fixture
def run(tmp_path):
    encoder = make_encoder(provenance={"run": "a"})
    save_encoder(tmp_path / "encoder", encoder.model, encoder.config)
    return tmp_path / "encoder"


def test_the_encoder_that_comes_along_gives_its_very_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encoder = load_encoder("anlage-tiny")
    start = starting_weights("anlage-tiny", encoder.config.architecture)
    torch.testing.assert_close(start.weights, dict(encoder.model.state_dict()), rtol=0, atol=0)
    assert start.provenance["source"] == "anlage-tiny"
    assert start.provenance["sha256"] == encoder.config.weights_sha256


def test_an_unknown_name_is_told_what_there_is():
    with pytest.raises(EncoderError, match="anlage-tinny: no such encoder.* one of: anlage-tiny"):
        starting_weights("anlage-tinny", ARCHITECTURE)


def test_an_encoder_folder_gives_its_very_weights(run):
    start = starting_weights(run, ARCHITECTURE)
    torch.testing.assert_close(
        start.weights, dict(make_encoder().model.state_dict()), rtol=0, atol=0
    )
    assert start.notes == ()
    assert start.provenance == {
        "source": str(run),
        "kind": "encoder folder",
        "sha256": weights_sha256(make_encoder().model.state_dict()),
        "made_by": {"run": "a"},
    }


def test_an_encoder_folder_is_adapted_to_another_size(run):
    arguments = ARCHITECTURE | {"image_px": 48, "patch_px": 12}
    start = starting_weights(str(run), arguments)
    assert [note.split(" from ")[0] for note in start.notes] == ["Adapted the patch projection"]
    model = loaded(start.weights, arguments)
    pixels = make_pixels(3).float() / 255
    larger = torch.nn.functional.interpolate(pixels, size=(48, 48), mode="bicubic", antialias=True)
    before = load_encoder(run).model.embed(pixels).cls_BD
    near = torch.nn.functional.cosine_similarity(model.embed(larger).cls_BD, before)
    assert near.min() > 0.99


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.pt"])
def test_a_file_computes_what_timm_computes(tmp_path, name):
    published = hub_named(theirs(REGISTERS).state_dict())
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file(published, path)
    else:
        torch.save(published, path)
    start = starting_weights(path, architecture(REGISTERS))
    assert_same_function(loaded(start.weights, architecture(REGISTERS)), theirs(REGISTERS), 56)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert start.provenance == {"source": str(path), "kind": "weight file", "sha256": digest}


def test_the_key_of_a_nested_file_is_on_record(tmp_path):
    inside = {f"backbone.{n}": t for n, t in theirs(DINO).state_dict().items()}
    torch.save({"teacher": inside, "epoch": 3}, tmp_path / "w.pth")
    start = starting_weights(tmp_path / "w.pth", architecture(DINO))
    assert start.provenance["key"] == "teacher"
    assert_same_function(loaded(start.weights, architecture(DINO)), theirs(DINO), 64)


def test_heads_that_a_file_cannot_tell_are_noted_where_they_are_unusual(tmp_path):
    torch.save(theirs(DINO).state_dict(), tmp_path / "w.pth")
    start = starting_weights(tmp_path / "w.pth", architecture(DINO))
    assert "taken for 32 wide, where published encoders have 64" in start.notes[-1]


@pytest.mark.parametrize("kind", [DINO, REGISTERS, "vit_giant_patch14_reg4_dinov2"])
def test_timm_gives_what_it_computes_with(tmp_path, kind):
    start = starting_weights(timm_folder(tmp_path / "hub", kind), architecture(kind))
    assert_same_function(
        loaded(start.weights, architecture(kind)), theirs(kind), KINDS[kind]["img_size"]
    )
    assert start.provenance == {
        "source": f"timm:local-dir:{tmp_path / 'hub'}",
        "kind": "timm",
        "sha256": weights_sha256(theirs(kind).state_dict()),
        "timm": timm.__version__,
        "license": "apache-2.0",
    }


def test_timms_own_names_are_looked_up_with_their_weights(tmp_path, monkeypatch):
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    create = timm.create_model

    def without_network(name, **options):
        overlay = {"file": str(tmp_path / "w.safetensors"), "custom_load": False}
        return create(name, pretrained_cfg_overlay=overlay, **options)

    monkeypatch.setattr(timm, "create_model", without_network)
    arguments = {"image_px": 224, "patch_px": 16, "width": 192, "depth": 12, "n_heads": 3}
    start = starting_weights("timm:vit_tiny_patch16_224", arguments | {"layer_scale": None})
    ours = loaded(start.weights, arguments | {"layer_scale": None})
    assert_same_function(ours, model.eval(), 224)
    assert start.provenance["hf_hub_id"].startswith("timm/vit_tiny_patch16_224")


def test_timm_missing_is_told_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(EncoderError, match=r"needs timm, .* pip install 'anlage\[timm\]'"):
        starting_weights("timm:vit_tiny_patch16_224", ARCHITECTURE)


def test_what_timm_cannot_load_is_refused_with_its_reason(tmp_path):
    with pytest.raises(EncoderError, match=r"^timm:vit_nonsense: timm cannot load it \(Unknown"):
        starting_weights("timm:vit_nonsense", ARCHITECTURE)
    with pytest.raises(EncoderError, match="No pretrained weights"):
        starting_weights("timm:vit_small_patch16_36x1_224", architecture(DINO))
    weights = theirs(DINO).state_dict()
    del weights["norm.bias"]
    source = timm_folder(tmp_path / "hub", DINO, weights)
    with pytest.raises(EncoderError, match="timm cannot load it"):
        starting_weights(source, architecture(DINO))


@pytest.mark.parametrize(
    ("model_args", "changes", "says"),
    [
        ({"num_heads": 6}, {}, r"has 6 attention heads, and this architecture 3.*n_heads to 6"),
        ({"act_layer": "relu"}, {}, r"computes with ReLU\(\) at blocks\.0\.mlp\.act"),
        ({"act_layer": "gelu_tanh"}, {}, "computes with GELU"),
        ({}, {"width": 120}, "has width 96"),
    ],
)
def test_what_tensors_do_not_show_is_asked_of_timm(tmp_path, model_args, changes, says):
    model = theirs(DINO, **model_args)
    source = timm_folder(tmp_path / "hub", DINO, model.state_dict(), **model_args)
    with pytest.raises(EncoderError, match=says):
        starting_weights(source, architecture(DINO, **changes))


def test_another_epsilon_is_refused(monkeypatch):
    model = theirs(DINO, norm_layer=partial(torch.nn.LayerNorm, eps=1e-5))
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: model)
    with pytest.raises(EncoderError, match="has LayerNorms of eps 1e-05; ours have 1e-06"):
        starting_weights("timm:any", architecture(DINO))


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        (DINO, {"act_layer": "silu"}, r"computes with SiLU\(\) at blocks\.0\.mlp\.act\. "),
        (
            "vit_giant_patch14_dinov2",
            {"mlp_layer": partial(GluMlp, act_layer=torch.nn.SiLU, gate_last=True)},
            r"SiLU\(\) at blocks\.0\.mlp\.act, its gate last",
        ),
        (DINO, {"block_fn": ResPostBlock}, r"has a ResPostBlock at blocks\.0"),
    ],
)
def test_tensors_of_our_names_that_compute_otherwise_are_refused(monkeypatch, kind, options, says):
    model = theirs(kind, **options)
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: model)
    with pytest.raises(EncoderError, match=says):
        starting_weights("timm:any", architecture(kind))


def test_another_model_of_timms_is_refused(tmp_path):
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architecture": "resnet10t", "num_classes": 0}))
    weights = timm.create_model("resnet10t", pretrained=False, num_classes=0).state_dict()
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(EncoderError, match=r"is timm's ResNet\. Choose a VisionTransformer"):
        starting_weights(f"timm:local-dir:{folder}", ARCHITECTURE)


def test_sources_that_do_not_fit_are_named(tmp_path, run):
    with pytest.raises(EncoderError, match=r"nowhere\.pth: no such weight file"):
        starting_weights(tmp_path / "nowhere.pth", ARCHITECTURE)
    with pytest.raises(EncoderError, match="has 3 attention heads, and this architecture 6"):
        starting_weights(run, ARCHITECTURE | {"n_heads": 6})
    with pytest.raises(EncoderError, match="has depth 2, and this architecture 3"):
        starting_weights(run, ARCHITECTURE | {"depth": 3})
