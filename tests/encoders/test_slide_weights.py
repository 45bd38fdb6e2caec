"""Prov-GigaPath's slide encoder: its file converts whole, and gives the official numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from official_slide_weights import bag_of, official_weights

from anlage.encoders.slide_presets import SLIDE_PRESETS
from anlage.encoders.slide_weights import convert_slide_weights
from anlage.errors import EncoderError
from anlage.models.dilated_attention import gigapath_branches
from anlage.models.grid_positions import grid_positions
from anlage.models.slide_encoder import SlideEncoder

GOLDEN = Path(__file__).parents[1] / "golden" / "slide_encoder.json"
NUMBERS = json.loads(GOLDEN.read_text(encoding="utf-8"))
SMALL = {"input_width": 24, "width": 32, "depth": 2}
FULL = {"input_width": 1536, "width": 768, "depth": 12}
GIGAPATH = SLIDE_PRESETS["prov-gigapath-slide"].architecture


def small_architecture(max_slide_px: int = 262144) -> dict:
    segments, dilations = zip(*gigapath_branches(max_slide_px), strict=True)
    return {**SMALL, "n_heads": 16, "segments": segments, "dilations": dilations, "pad": "zero"}


def converted(weights: dict[str, torch.Tensor], architecture: dict) -> SlideEncoder:
    network = SlideEncoder(**architecture).eval()
    found = convert_slide_weights(weights, architecture, path="slide_encoder.pth")
    network.load_state_dict(found.weights, strict=True)
    return network


@torch.no_grad()
def assert_as_official(network: SlideEncoder, wanted: dict, *, pooling: str, every: int = 1):
    """All states and the output are the official code's to 1e-5."""
    features, cells = bag_of(wanted["n_tiles"], input_width=network.input_width)
    bag = features, cells, [len(features)]
    layers = range(network.depth + 1)
    states = network.pooled(*bag, layers=layers, pooling=pooling).view(len(layers), -1)
    output = network.pooled(*bag, pooling=pooling)[0]
    close = {"atol": 1e-5, "rtol": 0}
    torch.testing.assert_close(states[:, ::every], torch.tensor(wanted["states"]), **close)
    torch.testing.assert_close(output[::every], torch.tensor(wanted["output"]), **close)


def small_case(wanted: dict):
    name = "{max_slide_px} px, {n_tiles} tiles, {pooling}".format(**wanted)
    marks = [pytest.mark.slow] if wanted["n_tiles"] > 5000 else []
    return pytest.param(wanted, id=name, marks=marks)


@pytest.mark.parametrize("wanted", [small_case(each) for each in NUMBERS["small"]])
def test_a_small_encoder_gives_what_the_official_code_gives(wanted):
    network = converted(official_weights(**SMALL), small_architecture(wanted["max_slide_px"]))
    assert_as_official(network, wanted, pooling=wanted["pooling"])


@pytest.mark.slow
def test_the_whole_encoder_gives_what_the_official_code_gives():
    network = converted(official_weights(**FULL), GIGAPATH)
    assert_as_official(network, NUMBERS["full"], pooling="cls", every=96)


@pytest.mark.slow
@pytest.mark.skipif("GIGAPATH_SRC" not in os.environ, reason="needs GIGAPATH_SRC")
def test_the_official_code_still_gives_the_golden_numbers(tmp_path):
    script, output = GOLDEN.with_name("regenerate_slide_encoder.py"), tmp_path / "again.json"
    path = os.pathsep.join([str(GOLDEN.parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, script, os.environ["GIGAPATH_SRC"], output]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path})
    again = json.loads(output.read_text(encoding="utf-8"))
    pairs = zip([*again["small"], again["full"]], [*NUMBERS["small"], NUMBERS["full"]], strict=True)
    for found, wanted in pairs:
        for name in ("states", "output"):
            torch.testing.assert_close(
                torch.tensor(found[name]), torch.tensor(wanted[name]), atol=1e-5, rtol=0
            )


def test_every_tensor_is_used_whatever_its_dtype():
    weights = official_weights(**SMALL)
    half = {name: tensor.half() for name, tensor in weights.items()}
    found = convert_slide_weights(half, small_architecture(), path="f").weights
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    stored = torch.cat([tensor.flatten() for tensor in half.values()]).float()
    ours = torch.cat([tensor.flatten() for tensor in found.values()])
    assert torch.equal(stored.sort().values, ours.sort().values)


def test_what_pretraining_alone_used_is_left_out_by_name():
    cells = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    positions = torch.cat([torch.zeros(1, 32), grid_positions(cells, width=32)])[None]
    more = {
        "mask_token": torch.zeros(1, 1, 32),
        "decoder.layers.0.fc1.weight": torch.zeros(4, 4),
        "decoder_embed.weight": torch.zeros(4, 4),
    }
    weights = official_weights(**SMALL)
    plain = convert_slide_weights(weights, small_architecture(), path="f")
    found = convert_slide_weights(
        weights | more | {"pos_embed": positions}, small_architecture(), path="f"
    )
    assert plain.notes == ()
    assert found.notes == (
        "Left out decoder.layers.0.fc1.weight, decoder_embed.weight, mask_token: used in "
        "pretraining alone.",
        "Left out pos_embed: fixed positions, computed from cells.",
    )
    assert all(torch.equal(found.weights[name], plain.weights[name]) for name in plain.weights)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"norm.bias": None}, "no tensor 'norm.bias'"),
        (
            {"encoder.layers.1.self_attn.k_proj.bias": None},
            "no tensor 'encoder.layers.1.self_attn.k_proj.bias'",
        ),
        ({"head.weight": torch.zeros(3)}, "an unknown tensor 'head.weight'"),
        (
            {"encoder.layers.2.ffn.fc1.bias": torch.zeros(3)},
            "an unknown tensor 'encoder.layers.2.ffn.fc1.bias'",
        ),
        ({"cls_token": torch.zeros(1, 1, 48)}, r"'cls_token' of shape \(1, 1, 48\) for \(1, 1, 32"),
        (
            {"encoder.layers.0.self_attn.q_proj.weight": torch.zeros(64, 32)},
            r"q_proj.weight' of shape \(64, 32\) for \(32, 32\)",
        ),
        ({"norm.bias": torch.full((32,), torch.nan)}, "'norm.bias' holds NaN"),
        ({"norm.bias": torch.zeros(32, dtype=torch.int8)}, "floating dtype; got torch.int8"),
        ({"pos_embed": torch.ones(1, 26, 32)}, "does not hold the fixed sines"),
        ({"pos_embed": torch.zeros(7)}, r"'pos_embed' of shape \(7,\) does not hold"),
    ],
)
def test_a_file_of_something_else_is_refused(changes, told):
    weights = {**official_weights(**SMALL), **changes}
    weights = {name: tensor for name, tensor in weights.items() if tensor is not None}
    with pytest.raises(EncoderError, match=told):
        convert_slide_weights(weights, small_architecture(), path="slide_encoder.pth")
