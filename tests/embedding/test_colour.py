"""Bags in sRGB: other pixels, said in the bag and in the record, never mixed with stored ones."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from icc_profiles import WIDE_TO_XYZ, matrix_profile
from small_encoder import make_encoder
from synthetic_slides import tissue_like, write_tiff

from anlage.bags.store import read_bag
from anlage.embedding.embed_tiles import embed_tiles
from anlage.encoders.folder import load_encoder, save_encoder
from anlage.errors import BagError
from anlage.slides.catalogue import Catalogue
from anlage.slides.colour import profile_digest, srgb_converter
from anlage.slides.indexing.index import index_slides
from anlage.slides.levels import read_tile

PROFILE = matrix_profile(WIDE_TO_XYZ, gamma=1.8)


@pytest.fixture
def coloured(tmp_path: Path) -> Catalogue:
    """Three slides: with a profile, without one, and with a damaged one."""
    folder = tmp_path / "slides"
    folder.mkdir()
    profiles = {"own": PROFILE, "none": None, "torn": PROFILE[:200]}
    for seed, (name, profile) in enumerate(profiles.items()):
        pixels = np.full((300, 300, 3), 243, np.uint8)
        pixels[20:-20, 20:-20] = tissue_like(260, 260, seed=seed) // 2 + np.uint8([90, 10, 70])
        extra = {} if profile is None else {"iccprofile": profile}
        write_tiff(folder / f"{name}.tif", [pixels], **extra)
    found = index_slides([folder], tmp_path / "slides.parquet").catalogue
    assert found is not None
    return found


def test_tiles_are_converted_before_the_encoder_and_the_bag_says_so(
    coloured: Catalogue, encoder_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "bags"
    with caplog.at_level(logging.WARNING, "anlage"):
        result = embed_tiles(encoder_folder, coloured, output, colour="srgb")
    assert sorted(result.done) == ["none", "own"]
    assert [Path(slide.uri).stem for slide in result.refused] == ["torn"]
    assert "ICC profile" in result.refused[0].reason
    assert "trained on stored" in caplog.text
    assert json.loads((output / "embedding.json").read_text())["colour"] == "srgb"
    bag = read_bag(output / "own.h5")
    assert (bag.attributes.colour, bag.attributes.icc_profile) == ("srgb", profile_digest(PROFILE))
    bare = read_bag(output / "none.h5").attributes
    assert (bare.colour, bare.icc_profile) == ("srgb", "none")
    encoder, convert = load_encoder(encoder_folder), srgb_converter(PROFILE)
    assert convert is not None
    with coloured.open_slide("own") as slide:
        x, y = bag.coords[3].tolist()
        tile = convert(read_tile(slide, x, y, size_px=32, mpp=1.0))
    expected = encoder.embed(torch.from_numpy(tile).permute(2, 0, 1)[None])[0].numpy()
    np.testing.assert_allclose(bag.features[3], expected, rtol=2e-3, atol=2e-3)


def test_a_bag_of_other_colours_is_another_bag(
    coloured: Catalogue, encoder_folder: Path, tmp_path: Path
) -> None:
    usable = coloured.select(slide_id="own")
    embed_tiles(encoder_folder, usable, tmp_path / "bags")
    assert read_bag(tmp_path / "bags" / "own.h5").attributes.colour == "stored"
    with pytest.raises(BagError, match="was made with colour stored; this run has srgb"):
        embed_tiles(encoder_folder, usable, tmp_path / "bags", colour="srgb")


def test_the_encoders_own_colours_are_the_default(coloured: Catalogue, tmp_path: Path) -> None:
    encoder = make_encoder(mpp=1.0, colour="srgb")
    save_encoder(tmp_path / "encoder", encoder.model, encoder.config)
    usable = coloured.select(slide_id="own")
    result = embed_tiles(tmp_path / "encoder", usable, tmp_path / "bags")
    assert result.done == ["own"]
    assert read_bag(tmp_path / "bags" / "own.h5").attributes.colour == "srgb"
    assert embed_tiles(tmp_path / "encoder", usable, tmp_path / "bags").skipped == ["own"]
