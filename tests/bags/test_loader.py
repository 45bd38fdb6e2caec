import numpy as np
import pytest
from some_bags import make_bag

from anlage.bags.bag_set import BagSet
from anlage.bags.loader import bag_batches, epoch_order, step_draws
from anlage.bags.store import write_bag


@pytest.fixture
def folder(tmp_path):
    for number, n_tiles in enumerate([3, 50, 7, 1]):
        slide_id = f"s{number}"
        write_bag(tmp_path / f"{slide_id}.h5", make_bag(slide_id, n_tiles, seed=number))
    return tmp_path


def test_batches_hold_the_bags_one_after_the_other(folder):
    bags = BagSet.open(folder)
    assert bags.slide_ids == ("s0", "s1", "s2", "s3")
    assert bags.n_tiles == (3, 50, 7, 1)
    draws = list(step_draws(bags.slide_ids, seed=0, batch_size=3, first_step=0, last_step=4))
    for drawn, batch in zip(draws, bag_batches(bags, draws, grid_um=128.0), strict=True):
        wanted = [make_bag(s, bags.n_tiles[int(s[1])], seed=int(s[1])) for _, s in drawn]
        assert list(zip(batch.numbers, batch.slide_ids, strict=True)) == drawn
        assert batch.lengths == tuple(len(bag.features) for bag in wanted)
        features = np.concatenate([bag.features for bag in wanted]).astype(np.float32)
        np.testing.assert_array_equal(batch.features_TD.numpy(), features)
        corners = np.concatenate([bag.coords for bag in wanted])
        np.testing.assert_array_equal(batch.corner_T2.numpy(), corners)
        cells = np.floor((corners + 1) * 0.2528 / 128)
        np.testing.assert_array_equal(batch.cell_T2.numpy(), cells)


def test_an_epoch_takes_each_slide_once(folder):
    ids = [f"s{k}" for k in range(20)]
    orders = [epoch_order(ids, seed=1, epoch=epoch) for epoch in range(3)]
    assert all(sorted(order) == sorted(ids) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
