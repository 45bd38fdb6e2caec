"""Packed batches against plain numpy: the same whoever reads them, however often, from where."""

import gc
import threading

import numpy as np
import pytest
import torch
from dropping_proxy import dropping_proxy
from some_bags import make_bag

from anlage.bags import loader
from anlage.bags.bag_set import BagSet
from anlage.bags.loader import BagCache, TileChoice, bag_batches, step_draws
from anlage.bags.store import bag_place, write_bag
from anlage.errors import BagError

SIZES = (3, 50, 7, 1, 400)
GRID_UM = 128.0


def fill(folder):
    for number in range(len(SIZES)):
        write_bag(bag_place(folder, f"s{number}"), bag_of(f"s{number}"))


def bag_of(slide_id):
    number = int(slide_id[1:])
    return make_bag(slide_id, SIZES[number], width=90, seed=number)


@pytest.fixture
def bags(tmp_path):
    fill(tmp_path)
    return BagSet.open(tmp_path)


def draws_of(bags, *, batch_size=3, first_step=0, last_step=6):
    steps = step_draws(
        bags.slide_ids, seed=2, batch_size=batch_size, first_step=first_step, last_step=last_step
    )
    return list(steps)


def packed(draws, choice=None):
    """The oracle: what a batch of these draws holds, features, corners, cells and lengths."""
    features, corners, lengths = [], [], []
    for g, slide_id in draws:
        bag = bag_of(slide_id)
        rows = None if choice is None else choice.rows(len(bag.features), g=g)
        rows = np.arange(len(bag.features)) if rows is None else rows
        features.append(bag.features[rows].astype(np.float32))
        corners.append(bag.coords[rows])
        lengths.append(len(rows))
    corner_T2 = np.concatenate(corners)
    cell_T2 = np.floor((corner_T2 + 1) * 0.2528 / GRID_UM)
    return np.concatenate(features), corner_T2, cell_T2, tuple(lengths)


def assert_packed(batch, draws, choice=None):
    features_TD, corner_T2, cell_T2, lengths = packed(draws, choice)
    assert list(zip(batch.numbers, batch.slide_ids, strict=True)) == list(draws)
    assert batch.lengths == lengths
    assert batch.features_TD.dtype == torch.float32
    np.testing.assert_array_equal(batch.features_TD.numpy(), features_TD)
    for found, wanted in ((batch.corner_T2, corner_T2), (batch.cell_T2, cell_T2)):
        assert found.dtype == torch.int64
        np.testing.assert_array_equal(found.numpy(), wanted)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("most_bytes", [0, 3000, 10**9])
def test_batches_hold_their_bags_one_after_the_other(bags, threads, most_bytes):
    draws = draws_of(bags)
    cache = BagCache(bags, most_bytes=most_bytes)
    found = list(bag_batches(bags, draws, grid_um=GRID_UM, threads=threads, cache=cache))
    assert len(found) == len(draws)  # all of them kept by the caller: none is written over
    for batch, step in zip(found, draws, strict=True):
        assert_packed(batch, step)
    assert cache.n_read + cache.n_kept == 18
    assert cache.n_read == 5 or most_bytes < 10**9


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("is_shuffled", [False, True])
@pytest.mark.parametrize("max_tiles", [None, 1, 20])
def test_choices_of_tiles_are_those_of_the_draw(bags, threads, is_shuffled, max_tiles):
    choice = TileChoice(seed=8, max_tiles=max_tiles, is_shuffled=is_shuffled)
    draws = draws_of(bags)
    batches = bag_batches(bags, draws, grid_um=GRID_UM, threads=threads, choice=choice)
    for batch, step in zip(batches, draws, strict=True):
        assert_packed(batch, step, choice)


def test_ranks_and_resumed_runs_see_their_part_of_the_same(bags):
    whole = draws_of(bags, batch_size=4)
    for rank in range(2):
        mine = [
            step[2 * rank : 2 * rank + 2] for step in draws_of(bags, batch_size=4, first_step=3)
        ]
        assert mine == [step[2 * rank : 2 * rank + 2] for step in whole[3:]]
        for batch, step in zip(bag_batches(bags, mine, grid_um=GRID_UM), mine, strict=True):
            assert_packed(batch, step)


def test_a_cache_outlives_its_batches_and_serves_a_part_of_its_set(bags, tmp_path):
    cache = BagCache(bags, most_bytes=10**9)
    for _ in range(3):
        for _ in bag_batches(bags, draws_of(bags), grid_um=GRID_UM, cache=cache):
            pass
    assert cache.n_read == 5
    part = BagSet.open(tmp_path, slide_ids=["s4", "s0"])
    draws = draws_of(part)
    for batch, step in zip(
        bag_batches(part, draws, grid_um=GRID_UM, cache=cache), draws, strict=True
    ):
        assert_packed(batch, step)
    assert cache.n_read == 5


def test_batches_can_be_changed_without_changing_the_bags(bags):
    cache, draws = BagCache(bags), [[(0, "s1")]]
    for _ in range(2):
        (batch,) = bag_batches(bags, draws, grid_um=GRID_UM, cache=cache)
        assert_packed(batch, draws[0])
        for tensor in (batch.features_TD, batch.corner_T2, batch.cell_T2):
            tensor.zero_()


def test_draws_are_taken_only_a_few_batches_ahead(bags, monkeypatch):
    taken = []

    def counted(draws):
        for step in draws:
            taken.append(step)
            yield step

    draws = draws_of(bags, last_step=100)
    batches = bag_batches(bags, counted(draws), grid_um=GRID_UM)
    next(batches)
    assert len(taken) == 8
    next(batches)
    assert len(taken) == 9
    batches.close()
    monkeypatch.setattr(loader, "AHEAD_BYTES", 0)  # of batches as large as this
    taken.clear()
    next(batches := bag_batches(bags, counted(draws), grid_um=GRID_UM))
    assert len(taken) == 2
    batches.close()


def test_closing_stops_the_threads(bags):
    before = threading.active_count()
    batches = bag_batches(bags, draws_of(bags, last_step=1000), grid_um=GRID_UM, threads=4)
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before
    batches = bag_batches(bags, draws_of(bags, last_step=1000), grid_um=GRID_UM, threads=4)
    next(batches)
    del batches
    gc.collect()
    assert threading.active_count() == before


def test_what_cannot_be_read_is_told_when_its_batch_is_due(bags, tmp_path):
    draws = [[(0, "s0"), (1, "s1")], [(2, "s2"), (3, "s4")], [(4, "s3")]]
    (tmp_path / "s4.h5").unlink()
    for threads in (1, 4):
        batches = bag_batches(bags, draws, grid_um=GRID_UM, threads=threads)
        assert_packed(next(batches), draws[0])
        with pytest.raises(BagError, match=r"s4\.h5: no such bag"):
            next(batches)


def test_a_bag_replaced_while_others_are_read_stops_the_run(bags, tmp_path):
    draws = draws_of(bags, last_step=40)
    cache = BagCache(bags, most_bytes=0)
    batches = bag_batches(bags, draws, grid_um=GRID_UM, cache=cache)
    for step in draws[:3]:
        assert_packed(next(batches), step)
    write_bag(tmp_path / "s4.h5", make_bag("s4", 400, width=90, seed=99))
    left = zip(batches, draws[3:], strict=True)
    with pytest.raises(BagError, match=r"s4\.h5: was replaced since it was opened"):
        any(assert_packed(*pair) for pair in left)  # until then the bags are the old ones


def test_empty_steps_and_unknown_slides_are_refused(bags):
    with pytest.raises(ValueError, match="needs at least one bag a step"):
        next(bag_batches(bags, [[]], grid_um=GRID_UM))
    with pytest.raises(ValueError, match="needs slides among its 5; got s9"):
        next(bag_batches(bags, [[(0, "s9")]], grid_um=GRID_UM))


def test_bags_in_a_bucket_are_read_like_files(bucket):
    fill(bucket)
    bags = BagSet.open(bucket)
    draws = draws_of(bags)
    cache = BagCache(bags, most_bytes=0)
    batches = bag_batches(bags, draws, grid_um=GRID_UM, threads=4, cache=cache)
    for batch, step in zip(batches, draws, strict=True):
        assert_packed(batch, step)


def test_connections_that_break_do_not_change_batches(bucket, endpoint, monkeypatch):
    fill(bucket)
    with dropping_proxy(endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        proxy.drop_every = 3
        bags = BagSet.open(bucket)
        draws = draws_of(bags)
        cache = BagCache(bags, most_bytes=0)
        batches = bag_batches(bags, draws, grid_um=GRID_UM, threads=4, cache=cache)
        for batch, step in zip(batches, draws, strict=True):
            assert_packed(batch, step)
        assert proxy.n_dropped > 0


def test_a_bucket_that_is_gone_stops_the_run_by_name(bucket, endpoint, monkeypatch):
    fill(bucket)
    with dropping_proxy(endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        bags = BagSet.open(bucket)
        monkeypatch.setenv("ANLAGE_REMOTE_SECONDS", "1")
        proxy.drop_every, proxy.after_bytes = 1, 0
        with pytest.raises(BagError, match=r"s3://bags/study 1/s4\.zarr: "):
            next(bag_batches(bags, [[(0, "s4")]], grid_um=GRID_UM))


def test_reading_ahead_uses_no_threads_of_torch(bags, monkeypatch):
    """A team of torch's beside the training's would fight it for the cores."""
    numels = []
    copy = torch.Tensor.copy_

    def seen(self, source, *arguments):
        numels.append(self.numel())
        return copy(self, source, *arguments)

    monkeypatch.setattr(torch.Tensor, "copy_", seen)
    next(bag_batches(bags, [[(0, "s4")]], grid_um=GRID_UM))
    assert sum(numels) == 400 * 90
    assert max(numels) < 32768
