"""What is left of a folder of bags, and what is said of the rest."""

import logging
import os

import h5py
import numpy as np
import pytest
from some_bags import make_bag

from anlage.bags.bag_set import BagSet
from anlage.bags.store import Bag, bag_place, read_bag_header, write_bag
from anlage.errors import BagError


def fill(folder, sizes, **changes):
    for number, (slide_id, n_tiles) in enumerate(sizes.items()):
        bag = make_bag(slide_id, n_tiles, seed=number, **changes)
        write_bag(bag_place(folder, slide_id), bag)


def on_a_grid(slide_id, n_tiles, step):
    """Tiles in a row, ``step`` level-0 pixels apart."""
    bag = make_bag(slide_id, n_tiles, slide_mpp=0.25)
    corners = np.stack([np.arange(n_tiles) * step, np.zeros(n_tiles, int)], axis=1)
    return Bag(slide_id, bag.features, corners, bag.attributes)


@pytest.fixture(params=["here", "bucket"])
def folder(request, tmp_path):
    return str(tmp_path) if request.param == "here" else request.getfixturevalue("bucket")


def test_a_set_knows_its_bags_by_their_headers(folder):
    fill(folder, {"b": 5, "a": 40, "c": 1})
    bags = BagSet.open(folder)
    assert bags.slide_ids == ("a", "b", "c")
    assert bags.n_tiles == (40, 5, 1)
    assert bags.width == 12
    assert len(bags) == 3
    assert bags.attributes == make_bag("a").attributes
    loaded = bags.read("b")
    wanted = make_bag("b", 5, seed=0)
    np.testing.assert_array_equal(loaded.features_LD.numpy(), wanted.features)
    np.testing.assert_array_equal(loaded.corner_L2, wanted.coords)
    assert loaded.slide_mpp == 0.2528
    assert loaded.n_bytes == 5 * (12 * 2 + 16)
    with pytest.raises(ValueError, match="needs slides among its 3; got z"):
        bags.read("z")


def test_names_that_no_bag_has_are_told_as_such(folder):
    fill(folder, {"a": 4})
    told = "no bag of the 2 slides asked for, such as 'a.svs'; its bags are named like 'a'. Write"
    with pytest.raises(BagError, match=told):
        BagSet.open(folder, slide_ids=["a.svs", "b.svs"])


def test_slides_are_taken_in_the_order_asked_for_and_the_missing_named(folder, caplog):
    fill(folder, {"a": 4, "b": 5, "c": 6})
    with caplog.at_level(logging.WARNING):
        bags = BagSet.open(folder, slide_ids=["c", "x", "a", "c", "y"])
    assert bags.slide_ids == ("c", "a")
    assert bags.n_tiles == (6, 4)
    assert bags.missing == ("x", "y")
    assert "2 slides have no bag: x, y" in caplog.text


def test_the_fingerprint_is_that_of_the_content(tmp_path):
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
    fill(tmp_path / "one", {"a": 4, "b": 5})
    write_bag(tmp_path / "two" / "b.zarr", make_bag("b", 5, seed=1))
    write_bag(tmp_path / "two" / "a.h5", make_bag("a", 4, seed=0, created_by="another"))
    fill(tmp_path / "three", {"a": 4, "b": 6})
    one, two, three = (BagSet.open(tmp_path / name) for name in ("one", "two", "three"))
    assert one.fingerprint == two.fingerprint != three.fingerprint
    turned = BagSet.open(tmp_path / "one", slide_ids=["b", "a"])
    assert turned.fingerprint == one.fingerprint
    assert BagSet.open(tmp_path / "one", slide_ids=["a"]).fingerprint != one.fingerprint


def test_bad_bags_are_left_out_by_name(tmp_path, caplog, monkeypatch):
    fill(tmp_path, {"good": 7, "nothing": 0, "short": 9, "large": 11, "alias": 3, "blind": 8})
    short = tmp_path / "short.h5"
    short.write_bytes(short.read_bytes()[:-40])
    (tmp_path / "alias.h5").rename(tmp_path / "other.h5")
    with h5py.File(tmp_path / "blind.h5", "a") as file:
        del file["coords"]
    outside = make_bag("outside", 4)
    outside.coords[2] = 4000, 7
    before = make_bag("before", 4)
    before.coords[1] = 5, -1
    for bag in (outside, before):
        write_bag(tmp_path / f"{bag.slide_id}.h5", bag)
    monkeypatch.setattr("anlage.bags.bag_set.MAX_TILES", 10)
    with caplog.at_level(logging.WARNING):
        bags = BagSet.open(tmp_path)
    assert bags.slide_ids == ("good",)
    assert bags.empty == ("nothing",)
    reasons = {
        "before": r"corners on the slide's 4000 x 3000 px; got \(5, -1\) of tile 1 and 0 others",
        "blind": "needs a 2-D dataset 'coords'",
        "large": "needs at most 10 tiles; got 11",
        "other": "is the bag of slide 'alias'",
        "outside": r"got \(4000, 7\) of tile 2",
        "short": "not a whole HDF5 file",
    }
    assert len(bags.refused) == len(reasons)
    for error, (slide_id, reason) in zip(bags.refused, reasons.items(), strict=True):
        assert error.path == str(tmp_path / f"{slide_id}.h5")
        with pytest.raises(BagError, match=reason):
            raise error
        assert f"left out: {error}" in caplog.text
    assert "1 slide has a bag without a tile: nothing" in caplog.text


def test_a_set_of_nothing_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr("anlage.bags.bag_set.MAX_TILES", 10)
    with pytest.raises(BagError, match="0 refused, 0 without a tile, 0 missing"):
        BagSet.open(tmp_path)
    fill(tmp_path, {"a": 0, "b": 20})
    with pytest.raises(BagError, match=r"1 refused .*b.h5: needs at most.*, 1 without a tile, 1"):
        BagSet.open(tmp_path, slide_ids=["a", "b", "c"])
    with pytest.raises(BagError, match="no such folder"):
        BagSet.open(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"encoder_fingerprint": "f" * 64}, "was made with encoder_fingerprint ffff"),
        ({"mpp": 1.0}, "was made with mpp 1.0"),
        ({"tile_px": 256}, "was made with tile_px 256"),
        ({"width": 13}, "needs embeddings of width 12; got 13"),
    ],
)
def test_bags_of_two_encoders_are_refused(tmp_path, changes, reason):
    fill(tmp_path, {"a": 4})
    write_bag(tmp_path / "b.h5", make_bag("b", **changes))
    with pytest.raises(BagError, match=rf"b.h5: {reason}"):
        BagSet.open(tmp_path)
    assert BagSet.open(tmp_path, slide_ids=["a"]).slide_ids == ("a",)


def test_another_width_than_the_one_asked_for_is_refused(tmp_path):
    fill(tmp_path, {"a": 4})
    with pytest.raises(BagError, match=r"a.h5: needs embeddings of width 1024; got 12"):
        BagSet.open(tmp_path, width=1024)


def test_two_bags_of_a_slide_are_refused(tmp_path):
    fill(tmp_path, {"a": 4})
    write_bag(tmp_path / "a.zarr", make_bag("a"))
    with pytest.raises(BagError, match="two bags of a slide"):
        BagSet.open(tmp_path)


def test_tiles_that_overlap_or_came_twice_are_counted_once_and_kept(tmp_path, caplog):
    write_bag(tmp_path / "apart.h5", on_a_grid("apart", 6, step=512))
    write_bag(tmp_path / "over.h5", on_a_grid("over", 6, step=256))
    twice = on_a_grid("twice", 4, step=512)
    twice.coords[3] = twice.coords[0]
    write_bag(tmp_path / "twice.h5", twice)
    bags = BagSet.open(tmp_path)
    assert bags.crowded == {"twice": 1}
    assert "1 slide has 1 tiles in the corner of another, kept" in caplog.text
    assert bags.n_tiles == (6, 6, 4)
    bags = BagSet.open(tmp_path, grid_um=128.0)
    assert bags.crowded == {"over": 3, "twice": 1}
    assert "2 slides have 4 tiles in the 128 um cell of another, kept" in caplog.text


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("tile", [0, 127, 128, 299])
def test_what_is_not_finite_is_refused_by_tile(tmp_path, monkeypatch, value, tile):
    monkeypatch.setattr("anlage.bags.store.as_stored", lambda place, bag: bag)  # another program
    bag = make_bag("a", 300)
    bag.features[tile, 11] = value
    write_bag(tmp_path / "a.h5", bag)
    bags = BagSet.open(tmp_path)
    with pytest.raises(BagError, match=rf"a.h5: holds NaN or an infinity in tile {tile}\."):
        bags.read("a")


def test_the_largest_finite_features_pass(tmp_path):
    bag = make_bag("a", 3)
    bag.features[:] = [[np.finfo(np.float16).max], [-np.finfo(np.float16).max], [6e-8]]
    write_bag(tmp_path / "a.h5", bag)
    np.testing.assert_array_equal(BagSet.open(tmp_path).read("a").features_LD, bag.features)


def test_a_bag_that_was_replaced_is_refused(folder):
    fill(folder, {"a": 30, "b": 5})
    bags = BagSet.open(folder)
    place = bag_place(folder, "a")
    write_bag(place, make_bag("a", 30, seed=9))
    for verify in (True, False):
        with pytest.raises(BagError, match="was replaced since it was opened"):
            bags.read("a", verify=verify)
    write_bag(place, make_bag("a", 30, seed=0))
    assert bags.read("a").features_LD.shape == (30, 12)


def test_a_bit_that_changed_is_found_by_the_checksum_alone(tmp_path):
    fill(tmp_path, {"a": 30})
    bags, path = BagSet.open(tmp_path), tmp_path / "a.h5"
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(BagError, match="does not match its checksum"):
        bags.read("a")
    found = bags.read("a", verify=False).features_LD.numpy()
    assert (found != make_bag("a", 30, seed=0).features).sum() == 1


def test_bags_found_bad_later_join_the_refused(tmp_path):
    fill(tmp_path, {"a": 4, "b": 5, "c": 6})
    bags = BagSet.open(tmp_path)
    error = BagError(tmp_path / "b.h5", "is bad.")
    left = bags.without([error])
    assert left.slide_ids == ("a", "c")
    assert left.n_tiles == (4, 6)
    assert left.refused == (error,)
    with pytest.raises(BagError, match="3 refused"):
        left.without([BagError(tmp_path / f"{name}.h5", "is bad.") for name in "ac"])


def test_a_file_that_is_cut_while_it_is_read_is_refused(tmp_path, monkeypatch):
    fill(tmp_path, {"a": 300})
    bags, path = BagSet.open(tmp_path), tmp_path / "a.h5"
    size = path.stat().st_size
    header = read_bag_header(path)

    def cut_then_header(*_):
        with path.open("r+b") as file:
            file.truncate(size - 1000)
        return header

    monkeypatch.setattr("anlage.bags.hdf5_store._header", cut_then_header)
    with pytest.raises(
        BagError, match="a.h5: not a whole HDF5 file .cut short while it was read: 1000"
    ):
        bags.read("a")


def test_a_file_that_comes_in_pieces_is_put_together(tmp_path, monkeypatch):
    fill(tmp_path, {"a": 300})
    bags, whole = BagSet.open(tmp_path), os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, into, at: whole(fd, [into[0][:1000]], at))
    wanted = make_bag("a", 300, seed=0).features
    np.testing.assert_array_equal(bags.read("a").features_LD, wanted)


def test_features_in_chunks_are_read_too(tmp_path):
    bag = make_bag("a", 70)
    write_bag(tmp_path / "a.h5", bag)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["features"]
        file.create_dataset("features", data=bag.features, chunks=(16, 12), compression="gzip")
    np.testing.assert_array_equal(BagSet.open(tmp_path).read("a").features_LD, bag.features)
