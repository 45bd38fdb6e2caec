"""A cluster of Ray on this machine: workers are processes, and die for real."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from anlage.bags.store import list_bags, read_bag
from anlage.embedding import bag_target
from anlage.embedding.embed_tiles import embed_tiles
from anlage.embedding.ray_cluster import embed_on_ray
from anlage.embedding.ray_workers import RayOptions
from anlage.embedding.settings import EmbedSettings
from anlage.slides.catalogue import Catalogue

TWO = RayOptions(workers=2, gpus_per_worker=0)
SETTINGS = EmbedSettings(batch_size=4, threads=1)
ALL = ["a", "b", "bb", "c", "d"]


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """Two processors' worth of Ray, for all tests."""
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ |= {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_DEDUP_LOGS": "0"}
    import ray

    paths = {"env_vars": {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}}
    ray.init(
        "local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=2**27,
        log_to_driver=False,
        runtime_env=paths,
    )
    yield
    ray.shutdown()


@pytest.fixture
def own_encoder(tmp_path, monkeypatch) -> Path:
    """The folder of an encoder whose writes are noted."""
    monkeypatch.setattr(bag_target, "write_bag", bag_target.write_bag)  # undone at the end
    monkeypatch.setattr(Catalogue, "open_slide", Catalogue.open_slide)
    (tmp_path / "own").mkdir()
    shutil.copy(Path(__file__).with_name("journalling_encoder.py"), tmp_path / "own")
    return tmp_path / "own"


def named(own: Path) -> str:
    return f"{own / 'journalling_encoder.py'}:encoder"


def written(own: Path) -> list[tuple[str, int]]:
    lines = (own / "journal").read_text(encoding="utf-8").splitlines()
    return [(line.split()[0], int(line.split()[1])) for line in lines]


def assert_same_bags(ours: Path, theirs: Path) -> None:
    assert list_bags(ours).keys() == list_bags(theirs).keys() == set(ALL)
    for slide_id in ALL:
        one, other = (read_bag(folder / f"{slide_id}.h5") for folder in (ours, theirs))
        np.testing.assert_array_equal(one.features, other.features)
        np.testing.assert_array_equal(one.coords, other.coords)
        assert one.attributes == other.attributes


@pytest.mark.usefixtures("cluster")
def test_two_workers_make_the_bags_of_one_process(catalogue, encoder_folder, tmp_path):
    here = embed_tiles(encoder_folder, catalogue, tmp_path / "here", batch_size=4)
    there = embed_on_ray(
        encoder_folder, catalogue, tmp_path / "there", settings=SETTINGS, options=TWO
    )
    assert_same_bags(tmp_path / "there", tmp_path / "here")
    assert sorted(there.done) == sorted(here.done)
    assert (there.empty, there.refused, there.n_tiles) == (["bb"], [], here.n_tiles)
    record = json.loads((tmp_path / "there" / "embedding.json").read_text())
    assert (record["workers"], record["device"], record["n_tiles"]) == (2, "cpu", here.n_tiles)
    assert [p.name for p in (tmp_path / "there").glob(".*")] == [".claims"]
    again = embed_tiles(encoder_folder, catalogue, tmp_path / "there", batch_size=4)
    assert (again.done, len(again.skipped)) == ([], 4)


class KillsTheFirstWriter(threading.Thread):
    """Sends SIGKILL to the process that begins the first bag, in the middle of its work."""

    def __init__(self, own: Path) -> None:
        super().__init__(daemon=True)
        self.own, self.killed = own, 0

    def run(self) -> None:
        until = time.monotonic() + 120
        while not (self.own / "journal").exists() and time.monotonic() < until:
            time.sleep(0.01)
        self.killed = written(self.own)[0][1]
        os.kill(self.killed, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_the_slides_of_a_worker_that_is_killed_are_made_by_another_and_none_twice(
    catalogue, own_encoder, tmp_path, caplog
):
    (own_encoder / "pause_s").write_text("0.15")
    bags = tmp_path / "bags"
    killer = KillsTheFirstWriter(own_encoder)
    killer.start()
    result = embed_on_ray(named(own_encoder), catalogue, bags, settings=SETTINGS, options=TWO)
    killer.join(60)
    assert killer.killed
    assert "a worker died with" in caplog.text
    assert (sorted([*result.done, *result.empty]), result.refused) == (ALL, [])
    (own_encoder / "pause_s").unlink()
    begun = written(own_encoder)
    unfinished = [name for name, process in begun if process == killer.killed][-1:]
    twice = [name for name, times in Counter(name for name, _ in begun).items() if times > 1]
    assert set(twice) <= set(unfinished)  # the one it was writing when it died, if that
    embed_tiles(named(own_encoder), catalogue, tmp_path / "here", batch_size=4)
    assert_same_bags(bags, tmp_path / "here")
    record = json.loads((bags / "embedding.json").read_text())
    assert sorted([*record["done"], *record["empty"]]) == ALL
    assert record["skipped"] == []


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_slide_that_kills_two_workers_is_refused_by_name_and_costs_no_other(
    catalogue, own_encoder, tmp_path
):
    (own_encoder / "deadly").write_text("c")
    bags = tmp_path / "bags"
    result = embed_on_ray(named(own_encoder), catalogue, bags, settings=SETTINGS, options=TWO)
    assert [Path(slide.uri).name for slide in result.refused] == ["c.tif"]
    assert "two workers died while they had it" in result.refused[0].reason
    assert sorted([*result.done, *result.empty]) == ["a", "b", "bb", "d"]
    (own_encoder / "deadly").unlink()
    again = embed_on_ray(named(own_encoder), catalogue, bags, settings=SETTINGS, options=TWO)
    assert (again.done, again.refused) == (["c"], [])
    record = json.loads((bags / "embedding.json").read_text())
    assert (sorted([*record["done"], *record["empty"]]), record["refused"]) == (ALL, [])
    assert Counter(name for name, _ in written(own_encoder)) == Counter(ALL)
