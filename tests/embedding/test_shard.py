from __future__ import annotations

import numpy as np
import pytest

from anlage.embedding.shard import Shard, deal_evenly, shard_of


def names(n: int) -> np.ndarray:
    return np.array([f"slide-{i:05d}" for i in range(n)], object)


def test_a_shard_is_named_from_one():
    assert (Shard.parse("3/8").number, Shard.parse("3/8").of) == (3, 8)
    assert str(Shard(3, 8)) == "3/8"


@pytest.mark.parametrize("text", ["0/8", "9/8", "1/0", "8", "a/b", "1/2/3", "-1/4", ""])
def test_what_names_no_shard_is_refused(text):
    with pytest.raises(ValueError, match="needs i/n with i from 1 to n"):
        Shard.parse(text)


def test_parts_are_even_and_every_item_is_in_one():
    areas = np.random.default_rng(0).lognormal(4, 1.5, 1000)
    parts = deal_evenly(areas, names(1000), 7)
    loads = np.bincount(parts, weights=areas, minlength=7)
    assert loads.max() / loads.mean() < 1.01
    blocks = np.arange(1000) * 7 // 1000  # what cutting the catalogue in seven would give
    assert np.bincount(blocks, weights=areas).max() / loads.mean() > 1.1


def test_parts_do_not_depend_on_the_order_of_the_catalogue():
    areas = np.round(np.random.default_rng(1).lognormal(4, 1, 60))  # some are equal
    order = np.random.default_rng(2).permutation(60)
    there = deal_evenly(areas, names(60), 4)
    np.testing.assert_array_equal(there[order], deal_evenly(areas[order], names(60)[order], 4))


def test_no_heavier_than_four_thirds_of_the_best():
    """Graham's bound, on all ways to deal nine items to three."""
    rng = np.random.default_rng(3)
    ways = np.stack(np.meshgrid(*[np.arange(3)] * 9), -1).reshape(-1, 9)
    for _ in range(20):
        weights = rng.integers(1, 30, 9).astype(float)
        loads = np.stack([(weights * (ways == part)).sum(1) for part in range(3)], 1)
        found = np.bincount(deal_evenly(weights, names(9), 3), weights=weights).max()
        assert found <= loads.max(1).min() * (4 / 3 - 1 / 9) + 1e-9


def test_shards_of_a_catalogue_share_it(catalogue):
    parts = [shard_of(catalogue, Shard(i, 3)) for i in (1, 2, 3)]
    found = [row.slide_id for part in parts for row in part.rows()]
    assert sorted(found) == ["a", "b", "bb", "c", "d"]
    assert all(len(part) for part in parts)
    assert len(shard_of(catalogue, Shard(1, 1))) == 5


def test_more_shards_than_slides_leave_some_empty(catalogue):
    sizes = [len(shard_of(catalogue, Shard(i, 9))) for i in range(1, 10)]
    assert sorted(sizes) == [0] * 4 + [1] * 5
