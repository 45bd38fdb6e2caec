"""A cluster of Ray on this machine: workers are processes, and die for real."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from local_bucket import bucket, endpoint, settings_of  # noqa: F401 - fixtures

from anlage.bags.store import list_bags, read_bag
from anlage.cli.application import app
from anlage.embedding import bag_target
from anlage.embedding.embed_tiles import embed_tiles
from anlage.embedding.ray_cluster import embed_on_ray
from anlage.embedding.ray_workers import RayOptions
from anlage.embedding.settings import EmbedSettings
from anlage.slides.catalogue import Catalogue

TWO = RayOptions(workers=2, gpus_per_worker=0)
SETTINGS = EmbedSettings(batch_size=4, threads=1)
ALL = ["a", "b", "bb", "c", "d"]
QUIET = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
QUIET |= {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}


@pytest.fixture(scope="session")
def cluster(endpoint: str) -> Iterator[None]:  # noqa: F811
    """Four processors' worth of Ray, whose workers know of the bucket."""
    os.environ |= QUIET
    import ray

    known = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)} | settings_of(endpoint)
    ray.init(
        "local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=2**27,
        log_to_driver=False,
        runtime_env={"env_vars": known},
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


@pytest.mark.long
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


@pytest.mark.long
@pytest.mark.usefixtures("cluster")
def test_workers_write_into_a_bucket_from_the_command_line(
    catalogue,
    encoder_folder,
    tmp_path,
    bucket,  # noqa: F811
    capsys,
    monkeypatch,
):
    monkeypatch.setattr("anlage.cli.embed_tiles.log_to", lambda _: None)
    command = ["--encoder", encoder_folder, "--slides", catalogue.path, "-o", bucket]
    on_ray = ["--engine", "ray", "--workers", 2, "--cpus-per-worker", 1, "--gpus-per-worker", 0]
    for told in ("4 slides embedded (", "0 slides embedded, 4 already there, 1 empty"):
        with pytest.raises(SystemExit) as end:
            app(["embed", "tiles", *map(str, command + on_ray)])
        assert end.value.code == 3  # one is empty
        assert told in capsys.readouterr().out
    embed_tiles(encoder_folder, catalogue, tmp_path / "here")
    for slide_id, place in list_bags(bucket).items():
        here = read_bag(tmp_path / "here" / f"{slide_id}.h5")
        np.testing.assert_array_equal(read_bag(place).features, here.features)
    assert list(list_bags(bucket)) == ALL


RUN = """
import os, sys
from anlage.embedding.ray_cluster import embed_on_ray
from anlage.embedding.ray_workers import RayOptions
from anlage.embedding.settings import EmbedSettings
encoder, catalogue, output = sys.argv[1:]
options = RayOptions(address="local", workers=1, gpus_per_worker=0)
settings = EmbedSettings(batch_size=4, threads=1)
embed_on_ray(encoder, catalogue, output, settings=settings, options=options)
"""


@pytest.mark.long
@pytest.mark.usefixtures("cluster")
def test_a_run_whose_driver_is_killed_goes_on_when_started_again(catalogue, own_encoder, tmp_path):
    """The first has a cluster of its own, which ends with it."""
    (own_encoder / "pause_s").write_text("0.3")
    bags, path = tmp_path / "bags", os.pathsep.join(p for p in sys.path if p)
    command = [sys.executable, "-c", RUN, named(own_encoder), str(catalogue.path), str(bags)]
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}) as driver:
        until = time.monotonic() + 200
        while not list(bags.glob("*.h5")) and time.monotonic() < until:
            time.sleep(0.02)
        driver.kill()
    (own_encoder / "pause_s").unlink()
    worker = written(own_encoder)[0][1]
    while psutil.pid_exists(worker) and time.monotonic() < until:
        time.sleep(0.1)
    finished = {path.stem for path in bags.glob("*.h5")}
    assert 0 < len(finished) < len(ALL)
    result = embed_on_ray(named(own_encoder), catalogue, bags, settings=SETTINGS, options=TWO)
    assert set(result.done).isdisjoint(finished)
    times = Counter(name for name, _ in written(own_encoder))
    assert all(times[name] == 1 for name in finished)
    assert list(list_bags(bags)) == ALL


NODES = """
import os, signal, sys, threading, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from anlage.embedding.ray_cluster import embed_on_ray
from anlage.embedding.ray_workers import RayOptions
from anlage.embedding.settings import EmbedSettings
encoder, catalogue, output = sys.argv[1:]
small = {"num_cpus": 1, "object_store_memory": 2**27}
cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
lost = cluster.add_node(**small)
ray.init(cluster.address, log_to_driver=False)
def lose():
    while len(list(Path(output).glob("*.h5"))) < 1:
        time.sleep(0.02)
    cluster.remove_node(lost, allow_graceful=False)
    print("lost a node", flush=True)
losing = threading.Thread(target=lose, daemon=True)
losing.start()
options = RayOptions(workers=2, cpus_per_worker=1, gpus_per_worker=0)
settings = EmbedSettings(batch_size=4, threads=1)
result = embed_on_ray(encoder, catalogue, output, settings=settings, options=options)
losing.join(60)
print("made", *sorted([*result.done, *result.empty]), flush=True)
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.long
def test_of_two_nodes_one_is_lost_and_the_other_makes_all_bags(catalogue, own_encoder, tmp_path):
    (own_encoder / "pause_s").write_text("0.3")
    bags, path = tmp_path / "bags", os.pathsep.join(p for p in sys.path if p)
    command = [sys.executable, "-c", NODES, named(own_encoder), str(catalogue.path), str(bags)]
    ended = subprocess.run(
        command,
        env=os.environ | QUIET | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        timeout=400,
        check=True,
    )
    assert "lost a node" in ended.stdout
    assert f"made {' '.join(ALL)}" in ended.stdout
    (own_encoder / "pause_s").unlink()
    embed_tiles(named(own_encoder), catalogue, tmp_path / "here", batch_size=4)
    assert_same_bags(bags, tmp_path / "here")
