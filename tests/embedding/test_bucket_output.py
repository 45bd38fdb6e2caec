"""Bags in a bucket: planned, made, resumed and told of as in a folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from local_bucket import bucket, endpoint  # noqa: F401 - fixtures
from small_encoder import make_encoder

from anlage.bags.store import list_bags, read_bag
from anlage.embedding.embed_tiles import embed_tiles
from anlage.errors import BagError
from anlage.slides.storage.remote_objects import delete_object, get_object


def record_at(url: str) -> dict:
    found = get_object(f"{url}/embedding.json")
    assert found is not None
    return json.loads(found[0])


def test_bags_in_a_bucket_are_those_of_a_folder_and_it_resumes(
    catalogue,
    encoder_folder,
    tmp_path,
    bucket,  # noqa: F811
    monkeypatch,
):
    monkeypatch.chdir(tmp_path)
    here = embed_tiles(encoder_folder, catalogue, tmp_path / "bags")
    there = embed_tiles(encoder_folder, catalogue, bucket)
    assert (there.done, there.empty, there.n_tiles) == (here.done, here.empty, here.n_tiles)
    for slide_id, place in list_bags(bucket).items():
        theirs, ours = read_bag(place), read_bag(tmp_path / "bags" / f"{slide_id}.h5")
        np.testing.assert_array_equal(theirs.features, ours.features)
        np.testing.assert_array_equal(theirs.coords, ours.coords)
        assert theirs.attributes == ours.attributes
    assert record_at(bucket)["done"] == here.done
    delete_object(f"{bucket}/c.zarr/zarr.json")
    again = embed_tiles(encoder_folder, catalogue, bucket)
    assert (again.done, again.skipped, again.empty) == (["c"], ["a", "b", "d"], ["bb"])
    assert [run["done"] for run in record_at(bucket)["runs"]] == [["a", "b", "c", "d"], ["c"]]
    assert not Path("s3:").exists()  # a URL never becomes a path


def test_patch_tokens_have_no_place_in_a_bucket(catalogue, bucket):  # noqa: F811
    with pytest.raises(BagError, match="cannot take patch tokens"):
        embed_tiles(make_encoder(mpp=1.0), catalogue, bucket, patch_tokens=True)
