"""Bags in memory: how many, how often they are read, and what is found out on the way."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from some_bags import make_bag

from anlage.bags import bag_cache, store
from anlage.bags.bag_cache import BagCache
from anlage.bags.bag_set import BagSet
from anlage.bags.store import write_bag
from anlage.distributed import Ranks
from anlage.errors import BagError

BYTES = 20 * (12 * 2 + 16)  # of a bag of 20 tiles


@pytest.fixture
def bags(tmp_path):
    for number in range(4):
        write_bag(tmp_path / f"s{number}.h5", make_bag(f"s{number}", 20, seed=number))
    return BagSet.open(tmp_path)


@pytest.fixture
def hashed(monkeypatch):
    """Bags whose checksum was computed."""
    seen = []

    def counted(features, corners):
        seen.append(len(features))
        return store_hash(features, corners)

    store_hash = store.content_sha256
    monkeypatch.setattr(store, "content_sha256", counted)
    return seen


def test_those_that_come_first_are_kept_until_memory_is_full(bags, hashed):
    cache = BagCache(bags, most_bytes=2 * BYTES + 100)
    for epoch in range(3):
        for number in (2, 0, 3, 1):
            bag = cache.take(f"s{number}")
            np.testing.assert_array_equal(
                bag.features_LD, make_bag(seed=number, n_tiles=20).features
            )
        assert cache.n_read == 4 + 2 * epoch
        assert cache.n_kept == 2 * epoch
    assert cache.n_bytes == 2 * BYTES
    assert cache.take("s2") is cache.take("s2")
    assert len(hashed) == 4  # each once, however often it is read


def test_without_room_each_bag_is_read_each_time(bags):
    cache = BagCache(bags, most_bytes=0)
    for _ in range(3):
        cache.take("s1")
    assert (cache.n_read, cache.n_kept, cache.n_bytes) == (3, 0, 0)


def test_zarr_bags_are_compared_each_time(tmp_path, hashed):
    """Their objects are files of their own, which can be of two bags at the same time."""
    write_bag(tmp_path / "a.zarr", make_bag("a"))
    cache = BagCache(BagSet.open(tmp_path), most_bytes=0)
    before = len(hashed)
    for _ in range(3):
        cache.take("a")
    assert len(hashed) - before == 3


def test_threads_that_want_the_same_bag_read_it_once(bags, monkeypatch):
    together, read = threading.Barrier(8), BagSet.read

    def slow(self, slide_id, **settings):
        threading.Event().wait(0.05)
        return read(self, slide_id, **settings)

    def take(_):
        together.wait()
        return cache.take("s1")

    monkeypatch.setattr(BagSet, "read", slow)
    cache = BagCache(bags, most_bytes=10 * BYTES)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(take, range(8)))
    assert len({id(bag) for bag in found}) == 1
    assert (cache.n_read, cache.n_kept) == (1, 7)


def test_a_bag_replaced_between_epochs_is_refused_and_never_mixed_in(bags, tmp_path):
    cache = BagCache(bags, most_bytes=0)
    cache.take("s1")
    write_bag(tmp_path / "s1.h5", make_bag("s1", 20, seed=77))
    with pytest.raises(BagError, match=r"s1\.h5: was replaced since it was opened"):
        cache.take("s1")


def test_a_bag_that_vanished_is_served_from_memory_alone(bags, tmp_path):
    cache = BagCache(bags, most_bytes=BYTES)
    cache.take("s1")
    for number in (1, 2):
        (tmp_path / f"s{number}.h5").unlink()
    cache.take("s1")
    with pytest.raises(BagError, match=r"s2\.h5: no such bag"):
        cache.take("s2")


def test_damage_is_told_each_time_and_never_kept(bags, tmp_path):
    data = bytearray((tmp_path / "s3.h5").read_bytes())
    data[-1] ^= 4
    (tmp_path / "s3.h5").write_bytes(data)
    cache = BagCache(bags, most_bytes=10 * BYTES)
    for _ in range(2):
        with pytest.raises(BagError, match=r"s3\.h5: its content does not match its checksum"):
            cache.take("s3")
    assert (cache.n_read, cache.n_bytes) == (0, 0)


def test_processes_of_a_machine_share_a_quarter_of_its_memory(monkeypatch, bags):
    monkeypatch.setattr(bag_cache, "free_bytes", lambda: 4000)
    assert BagCache(bags).most_bytes == 1000
    assert BagCache(bags, ranks=Ranks(rank=1, world_size=8, local_size=4)).most_bytes == 250
    monkeypatch.setattr(bag_cache, "free_bytes", lambda: 2**40)
    assert BagCache(bags).most_bytes == 8 * 2**30


def test_free_memory_is_below_that_of_the_machine_and_of_its_container(tmp_path, monkeypatch):
    assert 2**20 < bag_cache.free_bytes() < 2**46
    monkeypatch.setattr(bag_cache, "CGROUP", tmp_path)
    free = bag_cache.free_bytes()
    for name, text in (
        ("memory.max", "max\n"),
        ("memory.current", "700000\n"),
        ("memory.stat", "anon 5\ninactive_file 100000\n"),
    ):
        (tmp_path / name).write_text(text)
    assert bag_cache.free_bytes() > 0.5 * free
    (tmp_path / "memory.max").write_text("1000000\n")
    assert bag_cache.free_bytes() == 400_000
    (tmp_path / "memory.max").write_text("500000\n")
    assert bag_cache.free_bytes() == 0
    monkeypatch.setattr(bag_cache, "MEMINFO", tmp_path / "none")
    assert bag_cache.free_bytes() == 0
    (tmp_path / "memory.max").unlink()
    assert bag_cache.free_bytes() == 4 * 2**30
