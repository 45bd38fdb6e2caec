"""What a worker refuses, without a cluster: it is called here as Ray would call it there."""

from __future__ import annotations

import builtins
from dataclasses import replace

import pytest

from anlage.bags.store import read_bag
from anlage.embedding.claims import claims_on
from anlage.embedding.embed_tiles import OpenEncoder
from anlage.embedding.encoder_facts import EncoderFacts
from anlage.embedding.ray_cluster import RayTarget, _settle, _with_absolute_file, embed_on_ray
from anlage.embedding.ray_worker import RemoteWork, SlideWorker
from anlage.embedding.ray_workers import Outcome, RayOptions
from anlage.embedding.settings import EmbedSettings
from anlage.embedding.slide_plan import Plan, grid_of
from anlage.embedding.slide_queue import SlideQueue
from anlage.encoders.open_encoder import open_encoder
from anlage.errors import CatalogueError, DistributedError, EncoderError


@pytest.fixture
def work(catalogue, encoder_folder, tmp_path) -> RemoteWork:
    return RemoteWork(
        encoder=str(encoder_folder),
        catalogue=str(catalogue.path),
        catalogue_fingerprint=catalogue.fingerprint,
        output=str(tmp_path / "bags"),
        settings=EmbedSettings(batch_size=4, threads=1),
        device="cpu",
    )


def test_a_worker_tells_of_its_encoder_and_of_each_group_for_itself(work, catalogue, tmp_path):
    worker = SlideWorker(work)
    facts = worker.ready()
    assert facts == EncoderFacts.of(open_encoder(work.encoder))
    first, second = worker.embed(["d", "bb"]), worker.embed(["a", "d"])
    assert (first.done, first.empty, first.skipped) == (["d"], ["bb"], [])
    assert (second.done, second.empty, second.skipped) == (["a"], [], ["d"])
    n_tiles = [len(read_bag(tmp_path / "bags" / f"{name}.h5").coords) for name in "da"]
    assert [first.n_tiles, second.n_tiles] == n_tiles


def test_a_node_with_another_version_of_anlage_or_torch_is_refused(work):
    for name in ("anlage", "torch"):
        other = replace(work, versions=work.versions | {name: "0.0.1"})
        with pytest.raises(DistributedError, match=f"{name}: is .* and 0.0.1 where the run"):
            SlideWorker(other).ready()
    SlideWorker(replace(work, versions=work.versions | {"python": "3.0"})).ready()


def test_a_node_that_does_not_see_a_file_says_which(work, tmp_path):
    for lacking in (
        replace(work, must_see=(str(tmp_path / "bags" / ".run-1"),)),
        replace(work, catalogue=str(tmp_path / "gone.parquet")),
    ):
        with pytest.raises(DistributedError, match="does not see it. All nodes must see"):
            SlideWorker(lacking).ready()
    with pytest.raises(DistributedError, match="sees another one"):
        SlideWorker(replace(work, catalogue_fingerprint="f" * 64)).ready()
    with pytest.raises(EncoderError):
        SlideWorker(replace(work, encoder=str(tmp_path / "gone"))).ready()
    assert not (tmp_path / "bags").exists()


def test_files_in_an_encoders_name_become_absolute(encoder_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").touch()
    (tmp_path / "uni").mkdir()
    here = str(tmp_path)
    assert _with_absolute_file("encoder") == (f"{here}/encoder", f"{here}/encoder")
    assert _with_absolute_file("uni") == ("uni", None)
    assert _with_absolute_file("uni=own.py") == (f"uni={here}/own.py", f"{here}/own.py")
    assert _with_absolute_file("timm:resnet18@0.5") == ("timm:resnet18@0.5", None)
    assert _with_absolute_file(f"{here}/own.py:make") == (f"{here}/own.py:make", f"{here}/own.py")
    with pytest.raises(EncoderError, match="by its whole path"):
        _with_absolute_file("own.py:make")


def test_without_ray_the_error_names_the_extra(catalogue, encoder_folder, tmp_path, monkeypatch):
    imported = builtins.__import__

    def without(name, *rest):
        if name == "ray":
            raise ImportError(name)
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DistributedError, match=r"Install anlage\[ray\]"):
        embed_on_ray(encoder_folder, catalogue, tmp_path / "bags")


def test_options_out_of_range_and_several_devices_are_refused(catalogue, encoder_folder, tmp_path):
    for wrong in ({"workers": 0}, {"cpus_per_worker": 0.0}, {"gpus_per_worker": -0.5}):
        with pytest.raises(ValueError, match="embed_on_ray: needs"):
            RayOptions(**wrong)
    with pytest.raises(CatalogueError):
        embed_on_ray(encoder_folder, tmp_path / "none.parquet", tmp_path / "bags")
    with pytest.raises(ValueError, match="one device a worker"):
        embed_on_ray(encoder_folder, catalogue, tmp_path / "bags", how=OpenEncoder(["cpu", "cpu"]))


def test_bags_that_a_dead_worker_had_finished_count_and_are_not_made_again(work, catalogue):
    worker = SlideWorker(work)
    facts = worker.ready()
    worker.embed(["a", "bb", "d"])
    target = RayTarget(
        output=work.output,
        encoder=facts,
        grid=grid_of(work.settings, facts.config),
        with_tokens=False,
        claims=claims_on(work.output),
        plan=Plan(),
    )
    queue = SlideQueue({}, n_workers=1)
    lost = Outcome(["a", "bb", "c", "d"], None, "killed")
    assert _settle(catalogue, target, queue, lost) == 3
    assert (target.done, target.empty, queue.take()) == (["a", "d"], ["bb"], ["c"])
    n_tiles = [len(read_bag(f"{work.output}/{name}.h5").coords) for name in "ad"]
    assert target.n_tiles == sum(n_tiles)
    assert _settle(catalogue, target, queue, Outcome(["c"], None, "killed again")) == 1
    assert (len(queue), [slide.uri for slide in target.refused]) == (0, ["slides/c.tif"])
    assert "killed again" in target.refused[0].reason
