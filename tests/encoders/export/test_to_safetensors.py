"""Our own folder to pass on: opens as before, says how it is used, names nobody."""

import json

import torch
from safetensors import safe_open
from small_encoder import make_pixels
from weighty_encoder import weighty_encoder

from anlage.encoders.export.export_encoder import export_encoder
from anlage.encoders.folder import load_encoder

PROVENANCE = {"recipe": "tiny", "patients": ["Jane-Doe-1"], "slides": {"Jane-Doe-1_A": "ab12"}}


def test_opens_with_the_same_embedding(tmp_path) -> None:
    encoder = weighty_encoder(dual_patch_norm=True, pooling="cls+mean")
    export_encoder(encoder, tmp_path / "out", to="safetensors")
    again = load_encoder(tmp_path / "out")
    assert torch.equal(again.embed(make_pixels(2)), encoder.embed(make_pixels(2)))
    assert again.fingerprint == encoder.fingerprint


def test_the_header_of_the_weights_says_how_they_are_used(tmp_path) -> None:
    export_encoder(weighty_encoder(), tmp_path / "out", to="safetensors")
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        told = file.metadata()
    assert told["format"] == "encoder/1"
    assert json.loads(told["mean"]) == [0.7, 0.5, 0.6]
    assert json.loads(told["tile_px"]) == 32


def test_no_patient_or_slide_is_named_in_any_file(tmp_path) -> None:
    encoder = weighty_encoder(provenance=PROVENANCE)
    export_encoder(encoder, tmp_path / "out", to="safetensors")
    files = list((tmp_path / "out").iterdir())
    assert len(files) == 3
    assert not any(b"Jane" in path.read_bytes() for path in files)
    told = json.loads((tmp_path / "out" / "config.json").read_text())["provenance"]
    assert told == {"recipe": "tiny", "n_patients": 1, "n_slides": 1}
