"""Several encoders over one reading, several devices, and other tiles than an encoder's own."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from small_encoder import make_encoder

from anlage.bags.store import read_bag
from anlage.embedding.embed_tiles import OpenEncoder, embed_tiles, embed_together
from anlage.embedding.settings import EmbedSettings
from anlage.encoders.folder import load_encoder
from anlage.errors import EncoderError
from anlage.slides.regions import PendingTiles


@pytest.fixture
def tiles_read(monkeypatch):
    """Tiles read so far, one number a block."""
    counts, read = [], PendingTiles.read

    def counted(pending):
        tiles = read(pending)
        counts.append(len(tiles))
        return tiles

    monkeypatch.setattr(PendingTiles, "read", counted)
    return counts


def folders(tmp_path, names):
    return {name: tmp_path / name for name in names}


def same_bags(one, other, names="abcd"):
    for name in names:
        there, here = read_bag(one / f"{name}.h5"), read_bag(other / f"{name}.h5")
        np.testing.assert_array_equal(there.coords, here.coords)
        np.testing.assert_allclose(there.features, here.features, rtol=1e-3, atol=1e-6)


def test_encoders_of_one_grid_share_the_pixels(catalogue, tmp_path, tiles_read):
    encoders = {
        "one": make_encoder(0, mpp=1.0),
        "two": make_encoder(1, mpp=1.0, pooling="cls+mean", mean=(0.5, 0.5, 0.5)),
    }
    results = embed_together(encoders, catalogue, folders(tmp_path, encoders))
    n_tiles = results["one"].n_tiles
    assert sum(tiles_read) == n_tiles == results["two"].n_tiles
    for name, encoder in encoders.items():
        assert (sorted(results[name].done), results[name].empty) == (["a", "b", "c", "d"], ["bb"])
        embed_tiles(encoder, catalogue, tmp_path / "alone" / name)
        same_bags(tmp_path / name, tmp_path / "alone" / name)
        record = json.loads((tmp_path / name / "embedding.json").read_text())
        assert record["encoder_fingerprint"] == encoder.fingerprint
    assert read_bag(tmp_path / "two" / "a.h5").features.shape[1] == 48


def test_an_encoder_of_other_tiles_reads_its_own(catalogue, tmp_path, tiles_read):
    encoders = {"one": make_encoder(0, mpp=1.0), "coarse": make_encoder(0, mpp=2.0)}
    results = embed_together(encoders, catalogue, folders(tmp_path, encoders))
    assert sum(tiles_read) == results["one"].n_tiles + results["coarse"].n_tiles
    assert 0 < results["coarse"].n_tiles < results["one"].n_tiles / 2
    embed_tiles(encoders["coarse"], catalogue, tmp_path / "alone")
    same_bags(tmp_path / "coarse", tmp_path / "alone", names="ad")


def test_only_what_an_encoder_lacks_is_made(catalogue, tmp_path, tiles_read):
    encoders = {"one": make_encoder(0, mpp=1.0), "two": make_encoder(1, mpp=1.0)}
    for name, slide_ids in (("one", "ab"), ("two", "bc")):
        for slide_id in slide_ids:
            part = catalogue.select(slide_id=slide_id)
            embed_tiles(encoders[name], part, tmp_path / name)
    tiles_read.clear()
    results = embed_together(encoders, catalogue, folders(tmp_path, encoders))
    assert (sorted(results["one"].done), sorted(results["two"].done)) == (["c", "d"], ["a", "d"])
    assert (results["one"].skipped, results["two"].skipped) == (["a", "b"], ["b", "c"])
    n_each = {name: len(read_bag(tmp_path / "one" / f"{name}.h5").coords) for name in "acd"}
    assert sum(tiles_read) == sum(n_each.values())


def test_what_one_encoder_cannot_embed_the_other_can(catalogue, tmp_path):
    encoders = {"one": make_encoder(0, mpp=1.0), "huge": make_encoder(1, mpp=1.0)}
    with torch.no_grad():
        encoders["huge"].model.norm.weight.mul_(1e6)
    results = embed_together(encoders, catalogue, folders(tmp_path, encoders))
    assert sorted(results["one"].done) == ["a", "b", "c", "d"]
    assert len(results["huge"].refused) == 4
    assert not (tmp_path / "huge" / "a.h5").exists()


def test_two_devices_make_the_bags_of_one(catalogue, encoder_folder, tmp_path):
    embed_tiles(encoder_folder, catalogue, tmp_path / "one", batch_size=8)
    result = embed_tiles(
        encoder_folder, catalogue, tmp_path / "two", batch_size=8, device=["cpu", "cpu"]
    )
    assert (sorted(result.done), result.empty) == (["a", "b", "c", "d"], ["bb"])
    same_bags(tmp_path / "one", tmp_path / "two")
    assert json.loads((tmp_path / "two" / "embedding.json").read_text())["device"] == "cpu,cpu"


def test_an_open_encoder_cannot_be_put_on_several_devices(catalogue, tmp_path):
    with pytest.raises(ValueError, match="Name its folder or preset"):
        embed_tiles(make_encoder(mpp=1.0), catalogue, tmp_path, device=["cpu", "cpu"])


def test_an_error_on_one_device_ends_the_run(catalogue, encoder_folder, tmp_path, monkeypatch):
    def fails(self, *_):
        raise ZeroDivisionError

    monkeypatch.setattr("anlage.embedding.growing_bag.GrowingBag.put", fails)
    with pytest.raises(ZeroDivisionError):
        embed_tiles(encoder_folder, catalogue, tmp_path / "bags", device=["cpu", "cpu"])


def test_tiles_that_the_encoder_was_not_trained_on_are_told_loudly(
    catalogue, encoder_folder, tmp_path, caplog
):
    bags = tmp_path / "bags"
    with caplog.at_level(logging.WARNING, "anlage"):
        embed_tiles(encoder_folder, catalogue, bags, mpp=2.0, tile_px=16, overlap_px=4)
    told = [
        "tiles at 2 mpp; the encoder was trained at 1",
        "tiles of 16 px; the encoder was trained on 32",
    ]
    assert [record.message for record in caplog.records] == told
    assert json.loads((bags / "embedding.json").read_text())["departures"] == told
    made = read_bag(bags / "a.h5").attributes
    assert (made.mpp, made.tile_px, made.stride_px) == (2.0, 16, 12)
    assert made.departures == "; ".join(told)


def test_one_of_several_resolutions_it_was_trained_at_is_no_departure(catalogue, tmp_path, caplog):
    encoder = make_encoder(mpp=0.5, provenance={"mpps": [0.5, 1.0]})
    with caplog.at_level(logging.WARNING, "anlage"):
        embed_tiles(encoder, catalogue, tmp_path / "bags", mpp=1.0)
    assert caplog.records == []


def test_a_tile_edge_that_the_network_cannot_take_is_refused_before_reading(
    catalogue, encoder_folder, tmp_path, tiles_read
):
    with pytest.raises(EncoderError, match=r"cannot take tiles of 30 px: .* Leave out --tile-px"):
        embed_tiles(encoder_folder, catalogue, tmp_path / "bags", tile_px=30)
    assert tiles_read == []


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"overlap_px": 32}, "overlap_px below the tile's edge of 32; got 32"),
        ({"overlap_px": 8, "stride_px": 8}, "stride_px or overlap_px, not both"),
        ({"overlap_px": -1}, "overlap_px of at least 0"),
        ({"mpp": 0.0}, "mpp above 0"),
        ({"tile_px": 0}, "tile_px of at least 1"),
        ({"min_tissue": 1.5}, "min_tissue from 0 to 1"),
    ],
)
def test_settings_out_of_range_are_refused(catalogue, encoder_folder, tmp_path, settings, says):
    with pytest.raises(ValueError, match=says):
        embed_tiles(encoder_folder, catalogue, tmp_path / "bags", **settings)
    assert not list((tmp_path / "bags").glob("*.h5"))


def test_the_arithmetic_is_that_asked_for(catalogue, encoder_folder, tmp_path):
    how = OpenEncoder(precision="fp32")
    encoders, outputs = {"x": encoder_folder}, {"x": tmp_path / "bags"}
    embed_together(encoders, catalogue, outputs, settings=EmbedSettings(batch_size=8), how=how)
    assert read_bag(tmp_path / "bags" / "a.h5").attributes.precision == "fp32"
    assert load_encoder(encoder_folder).precision == "fp32"


@pytest.mark.gpu
def test_cuda_makes_the_bags_of_the_cpu_also_by_two_replicas(catalogue, encoder_folder, tmp_path):
    how = {"precision": "fp32", "patch_tokens": True, "batch_size": 16}
    embed_tiles(encoder_folder, catalogue, tmp_path / "cpu", device="cpu", **how)
    embed_tiles(encoder_folder, catalogue, tmp_path / "cuda", device="cuda", **how)
    embed_tiles(encoder_folder, catalogue, tmp_path / "two", device=["cuda:0", "cuda:0"], **how)
    for made in ("cuda", "two"):
        for name in "abcd":
            there = read_bag(tmp_path / "cpu" / f"{name}.h5").features.astype(np.float32)
            here = read_bag(tmp_path / made / f"{name}.h5").features.astype(np.float32)
            np.testing.assert_allclose(here, there, atol=2e-3)
            tokens = np.load(tmp_path / made / f"{name}.patch_tokens.npy")
            expected = np.load(tmp_path / "cpu" / f"{name}.patch_tokens.npy")
            np.testing.assert_allclose(tokens.astype(float), expected.astype(float), atol=4e-3)
