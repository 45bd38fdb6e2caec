"""Patch tokens beside the bags: the encoder's own, in the bag's order, never held whole."""

from __future__ import annotations

import errno
import json
import resource

import numpy as np
import pytest
import torch

from anlage.bags.store import read_bag
from anlage.embedding.embed_tiles import embed_tiles
from anlage.embedding.patch_token_file import PatchTokenFile
from anlage.encoders.folder import load_encoder
from anlage.errors import BagError
from anlage.slides.levels import read_tile


def test_tokens_are_those_of_the_bags_tiles(catalogue, encoder_folder, tmp_path):
    bags, encoder = tmp_path / "bags", load_encoder(encoder_folder)
    result = embed_tiles(encoder_folder, catalogue, bags, batch_size=7, patch_tokens=True)
    assert (sorted(result.done), result.empty) == (["a", "b", "c", "d"], ["bb"])
    assert np.load(bags / "bb.patch_tokens.npy").shape == (0, 16, 24)
    assert json.loads((bags / "embedding.json").read_text())["patch_tokens"] == [16, 24]
    for name in "abcd":
        bag = read_bag(bags / f"{name}.h5")
        tokens = np.load(bags / f"{name}.patch_tokens.npy", mmap_mode="r")
        assert (tokens.shape, tokens.dtype) == ((len(bag.coords), 16, 24), np.float16)
        with catalogue.open_slide(name) as slide:
            for row in (0, len(bag.coords) - 1):
                tile = read_tile(slide, *bag.coords[row].tolist(), size_px=32, mpp=1.0)
                expected = encoder.patch_tokens(torch.from_numpy(tile).permute(2, 0, 1)[None])[0]
                np.testing.assert_allclose(tokens[row], expected.numpy(), rtol=2e-3, atol=2e-3)


def test_bags_without_tokens_are_made_anew_once_those_are_asked_for(
    catalogue, encoder_folder, tmp_path
):
    bags = tmp_path / "bags"
    embed_tiles(encoder_folder, catalogue, bags)
    before = read_bag(bags / "a.h5")
    again = embed_tiles(encoder_folder, catalogue, bags, patch_tokens=True)
    assert sorted(again.done) == ["a", "b", "c", "d"]
    np.testing.assert_allclose(read_bag(bags / "a.h5").features, before.features, atol=1e-3)
    assert embed_tiles(encoder_folder, catalogue, bags, patch_tokens=True).done == []
    assert embed_tiles(encoder_folder, catalogue, bags).done == []  # they do no harm


def test_a_run_that_ends_by_an_error_leaves_no_parts(
    catalogue, encoder_folder, tmp_path, monkeypatch
):
    def fails(_self, _rows, _tokens):
        raise OSError(errno.EIO, "a fault of the disk")

    monkeypatch.setattr(PatchTokenFile, "put", fails)
    with pytest.raises(OSError, match="a fault of the disk"):
        embed_tiles(encoder_folder, catalogue, tmp_path / "bags", patch_tokens=True)
    assert not list((tmp_path / "bags").glob(".*.part"))


def test_asking_for_tokens_does_not_write_over_bags_of_another_grid(
    catalogue, encoder_folder, tmp_path
):
    bags = tmp_path / "bags"
    embed_tiles(encoder_folder, catalogue, bags)
    before = (bags / "a.h5").read_bytes()
    with pytest.raises(BagError, match="was made with stride_px 32; this run has 16"):
        embed_tiles(encoder_folder, catalogue, bags, stride_px=16, patch_tokens=True)
    assert (bags / "a.h5").read_bytes() == before


def test_tokens_of_an_earlier_bag_do_not_pass_for_those_of_a_new_one(
    catalogue, encoder_folder, tmp_path
):
    bags = tmp_path / "bags"
    embed_tiles(encoder_folder, catalogue, bags, patch_tokens=True)
    (bags / "a.h5").unlink()
    embed_tiles(encoder_folder, catalogue, bags)
    assert not (bags / "a.patch_tokens.npy").exists()
    np.save(bags / "b.patch_tokens.npy", np.zeros((1, 16, 24), np.float16))  # of other tiles
    again = embed_tiles(encoder_folder, catalogue, bags, patch_tokens=True)
    assert sorted(again.done) == ["a", "b"]


def test_rows_in_any_order_and_nothing_before_the_end(tmp_path):
    path = tmp_path / "a.patch_tokens.npy"
    tokens = np.random.default_rng(0).normal(size=(9, 4, 5)).astype(np.float16)
    growing = PatchTokenFile(path, 9)
    for rows in ([3, 4, 5, 8], [0], [7, 1, 2, 6]):
        growing.put(np.array(rows), tokens[rows])
    assert not path.exists()
    growing.finish((4, 5))
    growing.discard()
    np.testing.assert_array_equal(np.load(path), tokens)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_full_disk_names_the_file_and_leaves_nothing(tmp_path):
    growing = PatchTokenFile(tmp_path / "a.patch_tokens.npy", 100)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match=r"a\.patch_tokens\.npy") as caught:
            growing.put(np.arange(100), np.zeros((100, 32, 32), np.float16))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        growing.discard()
    assert caught.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []
