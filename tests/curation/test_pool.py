"""A pool is its bags one after the other; bags that cannot be used are named and left out."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from curated_bags import Bags, corners_of, features_of

from anlage.curation.pool import read_pool
from anlage.errors import BagError
from anlage.slides.catalogue import Catalogue


def fingerprints(catalogue: Catalogue) -> dict[str, str]:
    return {row.slide_id: row.fingerprint for row in catalogue.rows()}


def spoil(folder: str, slide_id: str, row: int, value: float) -> None:
    with h5py.File(f"{folder}/{slide_id}.h5", "r+") as file:
        file["features"][row, 3] = value


def test_a_pool_is_its_bags_in_order(pool_folder: str, small: Catalogue) -> None:
    pool = read_pool(pool_folder, slides=fingerprints(small))
    assert (pool.slide_ids, len(pool), pool.refused) == (("a", "b", "c"), 144, ())
    assert pool.slide_N.tolist() == [0] * 48 + [1] * 48 + [2] * 48
    wanted = np.concatenate([features_of(seed) for seed in range(3)])
    np.testing.assert_array_equal(pool.feature_ND, wanted)
    assert pool.feature_ND.dtype == np.float16
    np.testing.assert_array_equal(pool.corner_N2, np.tile(corners_of(), (3, 1)))
    part = pool.at(np.array([50, 100]))
    assert [part.slide_ids[s] for s in part.slide_N] == ["b", "c"]
    np.testing.assert_array_equal(part.feature_ND, wanted[[50, 100]])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 7.0])
def test_a_spoilt_bag_costs_itself(pool_folder: str, value: float) -> None:
    spoil(pool_folder, "b", 5, value)
    pool = read_pool(pool_folder)
    assert pool.slide_ids == ("a", "c")
    (error,) = pool.refused
    assert error.path.endswith("b.h5")
    assert ("checksum" if value == 7 else "holds NaN or an infinity") in error.message
    np.testing.assert_array_equal(pool.feature_ND, np.concatenate([features_of(0), features_of(2)]))


def test_slides_that_are_not_the_catalogues_are_named(bags: Bags, small: Catalogue) -> None:
    bags.write("a", features_of(0))
    bags.write("b", features_of(1), slide_fingerprint="0" * 64)
    folder = bags.write("z", features_of(2))
    pool = read_pool(folder, slides=fingerprints(small))
    assert pool.slide_ids == ("a",)
    told = [error.message for error in pool.refused]
    assert "another file than the catalogue's 'b'" in told[0]
    assert "slide 'z' is not in the catalogue" in told[1]
    assert read_pool(folder).slide_ids == ("a", "b", "z")


def test_only_some_slides_are_taken_and_unknown_ones_still_named(
    bags: Bags, pool_folder: str, small: Catalogue
) -> None:
    bags.write("z", features_of(2))
    pool = read_pool(pool_folder, slides=fingerprints(small), only={"b"})
    assert pool.slide_ids == ("b",)
    assert [error.path[-4:] for error in pool.refused] == ["z.h5"]


def test_empty_bags_are_told_and_places_are_taken_once(bags: Bags) -> None:
    corners = corners_of()
    corners[[7, 9]] = corners[3]
    bags.write("a", features_of(0), corners)
    folder = bags.write("b", np.zeros((0, 12), dtype=np.float16))
    pool = read_pool(folder)
    assert (len(pool), pool.n_doubled, pool.empty) == (46, 2, ("b",))
    kept = [row for row in range(48) if row not in {7, 9}]
    np.testing.assert_array_equal(pool.corner_N2, corners[kept])
    np.testing.assert_array_equal(pool.feature_ND, features_of(0)[kept])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"encoder_fingerprint": "0" * 64}, "made with encoder_fingerprint 000"),
        ({"mpp": 0.5}, r"made with mpp 0\.5; .*a\.h5 with 1\.0"),
        ({"tile_px": 16}, "made with tile_px 16"),
        ({"colour": "srgb"}, "made with colour srgb"),
    ],
)
def test_mixed_bags_are_refused(bags: Bags, changes, says: str) -> None:
    bags.write("a", features_of(0))
    folder = bags.write("b", features_of(1), **changes)
    with pytest.raises(BagError, match=says):
        read_pool(folder)


def test_bags_of_several_widths_are_refused(bags: Bags) -> None:
    bags.write("a", features_of(0))
    folder = bags.write("b", features_of(1)[:, :7])
    with pytest.raises(BagError, match=r"is 7 wide; .*a\.h5 is 12"):
        read_pool(folder)


def test_folders_without_tiles_are_refused(bags: Bags, tmp_path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(BagError, match="holds no bags"):
        read_pool(str(tmp_path / "none"))
    folder = bags.write("a", np.zeros((0, 12), dtype=np.float16))
    with pytest.raises(BagError, match=r"no tile that can be used \(1 bags\)"):
        read_pool(folder)
    bags.write("a", features_of(0))
    spoil(folder, "a", 0, float("nan"))
    with pytest.raises(BagError, match="no bag that can be used; the first: .*NaN"):
        read_pool(folder)
