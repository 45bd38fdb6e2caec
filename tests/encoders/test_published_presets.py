"""Presets without their weights: the published network, random, saved as published, opened by us.

Each with two heads and blocks by default; at full width it is slow, whole it is slow or long.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from published_presets import TIMM, TRANSFORMERS, published_sizes, smaller, stand_in
from small_encoder import make_pixels

from anlage.encoders.preset_encoder import preset_encoder
from anlage.encoders.presets import PRESETS, Preset
from anlage.encoders.tile_encoder import TileEncoder
from anlage.encoders.weight_files import read_weight_file, state_dict_of

ON_OURS = sorted(name for name, preset in PRESETS.items() if preset.remote is None)
PUBLISHED_NAMES = {
    "phikon": "encoder.layer.0.attention.attention.query.weight",
    "phikon-v2": "encoder.layer.0.attention.attention.query.weight",
    "midnight-12k": "encoder.layer.0.mlp.weights_in.weight",
    "hibou-b": "embeddings.register_tokens",
    "hibou-l": "embeddings.register_tokens",
    "openmidnight": "blocks.0.mlp.w12.weight",
}


def assert_same_embedding(
    preset: Preset, folder: Path, *, grid_px: int | None = None, n_tiles: int = 2
) -> TileEncoder:
    theirs = stand_in(preset, folder, grid_px=grid_px)
    pixels = make_pixels(n_tiles, size_px=preset.tile_px)
    wanted, file = theirs.embed(preset, pixels), theirs.file
    named, _ = state_dict_of(read_weight_file(file), path=file)
    assert PUBLISHED_NAMES.get(preset.name, "blocks.0.attn.qkv.weight") in named
    del theirs  # a large one would be in memory twice
    encoder = preset_encoder(preset, file=file)
    assert encoder.width == preset.width == wanted.shape[1]
    torch.testing.assert_close(encoder.embed(pixels), wanted, atol=1e-5, rtol=1e-5)
    return encoder


def test_every_preset_that_runs_on_our_transformer_has_a_stand_in():
    assert sorted(TIMM.keys() | TRANSFORMERS.keys()) == ON_OURS


@pytest.mark.parametrize("name", ON_OURS)
def test_sizes_are_the_published_ones(name):
    """Heads too, which no tensor tells."""
    told = PRESETS[name].architecture
    ours = tuple(told[key] for key in ("width", "depth", "n_heads", "patch_px"))
    assert ours == published_sizes(name)


@pytest.mark.parametrize("name", ON_OURS)
def test_the_published_file_gives_the_published_embedding(name, tmp_path):
    preset = smaller(PRESETS[name], depth=2, narrow=True)
    encoder = assert_same_embedding(preset, tmp_path)
    assert encoder.config.provenance["preset"] == name
    assert encoder.config.provenance["licence"] == preset.licence
    assert (encoder.config.tile_px, encoder.config.mpp) == (224, 0.5)


def test_positions_for_a_larger_image_are_resampled_as_transformers_does(tmp_path):
    """Without antialiasing, which timm has: Midnight began from DINOv2's 518 px."""
    preset = smaller(PRESETS["midnight-12k"], depth=1, narrow=True)
    assert_same_embedding(preset, tmp_path, grid_px=518)


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_OURS)
def test_at_full_width(name, tmp_path):
    assert_same_embedding(smaller(PRESETS[name], depth=1), tmp_path, n_tiles=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["uni", "phikon", "hibou-b"])
def test_a_whole_one(name, tmp_path):
    assert_same_embedding(PRESETS[name], tmp_path, n_tiles=1)


@pytest.mark.long
@pytest.mark.parametrize("name", ["virchow2", "midnight-12k", "prov-gigapath"])
def test_a_whole_large_one(name, tmp_path):
    """Up to 4.5 GB of weights, on disk once or twice and in memory three times at the most."""
    assert_same_embedding(PRESETS[name], tmp_path, n_tiles=1)
