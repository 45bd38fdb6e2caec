"""Runs that share a folder, are killed, lose their slides or their disk: for real."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_disk import forbid_writing, small_disk

from anlage.bags.store import read_bag
from anlage.embedding.claims import SlideClaims
from anlage.embedding.embed_tiles import embed_tiles
from anlage.embedding.shard import Shard
from anlage.encoders.tile_encoder import TileEncoder

PROGRAM = """
import json, sys, time
import torch
from anlage.embedding import bag_target
from anlage.embedding.embed_tiles import embed_tiles
from anlage.embedding.shard import Shard
from anlage.encoders.tile_encoder import TileEncoder
torch.set_num_threads(1)
encoder, catalogue, output, pause_s, shard = sys.argv[1:]
embed, write = TileEncoder.embed, bag_target.write_bag
def slow(self, pixels):
    time.sleep(float(pause_s))
    return embed(self, pixels)
def told(path, bag):
    print("wrote", bag.slide_id, flush=True)
    write(path, bag)
TileEncoder.embed, bag_target.write_bag = slow, told
shard = Shard.parse(shard) if shard else None
result = embed_tiles(encoder, catalogue, output, batch_size=8, shard=shard)
print("ended", json.dumps([result.done, result.empty, result.elsewhere]), flush=True)
"""
ALL = ["a", "b", "bb", "c", "d"]


def start(encoder: Path, catalogue: Path, output: Path, *, pause_s=0.0, shard=""):
    arguments = [str(value) for value in (encoder, catalogue, output, pause_s, shard)]
    command = [sys.executable, "-c", PROGRAM, *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def written(told: str) -> list[str]:
    return [line.split()[1] for line in told.splitlines() if line.startswith("wrote")]


@pytest.mark.slow
def test_two_runs_in_one_folder_share_its_slides(catalogue, encoder_folder, tmp_path):
    bags = tmp_path / "bags"
    runs = [start(encoder_folder, catalogue.path, bags, pause_s=0.1) for _ in range(2)]
    told = [run.communicate(timeout=300)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert sorted(name for each in told for name in written(each)) == ALL  # each once
    for name in ALL:
        read_bag(bags / f"{name}.h5")
    assert list(bags.glob(".*.part")) == []
    record = json.loads((bags / "embedding.json").read_text())
    assert sorted([*record["done"], *record["empty"]]) == ALL
    assert record["skipped"] == []


HOLD = """
import sys
from pathlib import Path
from anlage.embedding.claims import SlideClaims
claims = SlideClaims(Path(sys.argv[1]))
print(claims.take("c"), flush=True)
input()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that has slide c of ``bags`` in its hands."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    command = [sys.executable, "-c", HOLD, str(tmp_path / "bags")]
    with subprocess.Popen(command, text=True, env=environment, **pipes) as process:
        assert process.stdout.readline() == "True\n"
        yield process
        process.kill()


def test_a_slide_that_another_run_has_is_named_and_not_waited_for(
    catalogue, encoder_folder, tmp_path, other
):
    bags = tmp_path / "bags"
    result = embed_tiles(encoder_folder, catalogue, bags)
    assert (result.done, result.empty, result.elsewhere) == (["a", "b", "d"], ["bb"], ["c"])
    assert json.loads((bags / "embedding.json").read_text())["elsewhere"] == ["c"]
    other.kill()
    other.wait(60)
    again = embed_tiles(encoder_folder, catalogue, bags)
    assert (again.done, again.elsewhere) == (["c"], [])


def test_what_a_run_that_is_killed_had_claimed_another_makes_at_its_end(
    catalogue, encoder_folder, tmp_path, other, monkeypatch
):
    embed = TileEncoder.embed

    def embed_and_kill(self, pixels):
        other.send_signal(signal.SIGKILL)
        other.wait(60)
        return embed(self, pixels)

    monkeypatch.setattr(TileEncoder, "embed", embed_and_kill)
    monkeypatch.setattr("anlage.embedding.read_ahead.PREFETCH_BATCHES", 1000)
    result = embed_tiles(encoder_folder, catalogue, tmp_path / "bags")
    assert (result.done, result.elsewhere) == (["a", "b", "d", "c"], [])


def test_a_bag_that_another_run_made_since_the_plan_is_kept(
    catalogue, encoder_folder, tmp_path, monkeypatch
):
    bags, take = tmp_path / "bags", SlideClaims.take
    embed_tiles(encoder_folder, catalogue, tmp_path / "other")

    def take_and_find(claims, slide_id):
        if slide_id == "c" and claims._folder == bags:
            (tmp_path / "other" / "c.h5").replace(bags / "c.h5")
        return take(claims, slide_id)

    monkeypatch.setattr(SlideClaims, "take", take_and_find)
    result = embed_tiles(encoder_folder, catalogue, bags)
    assert (result.done, result.skipped) == (["a", "b", "d"], ["c"])


def test_shards_make_all_bags_and_one_record(catalogue, encoder_folder, tmp_path):
    bags = tmp_path / "bags"
    results = [
        embed_tiles(encoder_folder, catalogue, bags, shard=Shard(number, 2)) for number in (1, 2)
    ]
    done = [sorted([*result.done, *result.empty]) for result in results]
    assert sorted(done[0] + done[1]) == ALL
    assert all(done)
    record = json.loads((bags / "embedding.json").read_text())
    assert sorted([*record["done"], *record["empty"]]) == ALL
    assert record["n_tiles"] == sum(result.n_tiles for result in results)
    assert record["catalogue_fingerprint"] == catalogue.fingerprint
    assert [run["shard"] for run in record["runs"]] == ["1/2", "2/2"]
    for number, names in enumerate(done, start=1):
        own = json.loads((bags / f"embedding.shard-{number}-of-2.json").read_text())
        assert sorted([*own["done"], *own["empty"]]) == names


def test_what_one_shard_refused_stays_refused_while_others_end(
    slides, catalogue, encoder_folder, tmp_path
):
    bags = tmp_path / "bags"
    (slides / "a.tif").unlink()
    told = []
    for number in (1, 2, 1):
        for name in "cd":  # else there is nothing to do, and the record stays
            (bags / f"{name}.h5").unlink(missing_ok=True)
        embed_tiles(encoder_folder, catalogue, bags, shard=Shard(number, 2))
        record = json.loads((bags / "embedding.json").read_text())
        told.append([slide["uri"] for slide in record["refused"]])
    assert told[1:] == [["slides/a.tif"]] * 2


@pytest.mark.slow
def test_no_record_is_lost_where_shards_end_together(catalogue, encoder_folder, tmp_path):
    bags = tmp_path / "bags"
    runs = [start(encoder_folder, catalogue.path, bags, shard=f"{i}/2") for i in (1, 2)]
    for run in runs:
        run.communicate(timeout=300)
    record = json.loads((bags / "embedding.json").read_text())
    assert sorted([*record["done"], *record["empty"]]) == ALL
    assert sorted(run["shard"] for run in record["runs"]) == ["1/2", "2/2"]


def test_a_slide_that_is_cut_short_mid_run_costs_that_slide(
    slides, catalogue, encoder_folder, tmp_path, monkeypatch
):
    embed, cut = TileEncoder.embed, []

    def embed_and_cut(self, pixels):
        if not cut:
            cut.append((slides / "d.tif").stat().st_size)
            os.truncate(slides / "d.tif", 1000)
            (slides / "c.tif").unlink()
        return embed(self, pixels)

    monkeypatch.setattr(TileEncoder, "embed", embed_and_cut)
    monkeypatch.setattr("anlage.embedding.read_ahead.PREFETCH_BATCHES", 1)
    monkeypatch.setattr("anlage.embedding.read_ahead.BLOCK_PX", 32)  # a block is a tile
    result = embed_tiles(encoder_folder, catalogue, tmp_path / "bags", batch_size=4, threads=1)
    assert cut
    assert sorted(result.done) == ["a", "b"]
    assert sorted(Path(slide.uri).stem for slide in result.refused) == ["c", "d"]
    assert sorted(path.stem for path in (tmp_path / "bags").glob("*.h5")) == ["a", "b", "bb"]


def test_a_full_disk_ends_the_run_and_what_is_finished_stands(catalogue, encoder_folder, tmp_path):
    with small_disk(tmp_path / "disk", size_kib=24) as disk:
        bags = disk / "bags"
        with pytest.raises(OSError, match=r"write_bag: No space left.*\.h5") as caught:
            embed_tiles(encoder_folder, catalogue, bags)
        assert caught.value.errno == errno.ENOSPC
        finished = [path.stem for path in bags.glob("*.h5")]
        for name in finished:
            read_bag(bags / f"{name}.h5")
        assert len(finished) < 5
        assert list(bags.glob(".*.part")) == []
        subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
        again = embed_tiles(encoder_folder, catalogue, bags)
        assert sorted([*again.skipped, *again.empty, *again.done]) == ALL


def test_an_output_that_cannot_be_written_to_is_told_before_anything_is_read(
    catalogue, encoder_folder, tmp_path, monkeypatch
):
    with small_disk(tmp_path / "disk", size_kib=1024) as disk:
        forbid_writing(disk)
        monkeypatch.setattr(type(catalogue), "open_slide", None)
        with pytest.raises(OSError, match="Read-only file system") as caught:
            embed_tiles(encoder_folder, catalogue, disk / "bags")
        assert str(disk) in str(caught.value.filename)


@pytest.mark.slow
def test_interrupted_with_two_devices_it_stops_and_goes_on(catalogue, encoder_folder, tmp_path):
    program = PROGRAM.replace("batch_size=8", "batch_size=8, device=['cpu', 'cpu']")
    bags = tmp_path / "bags"
    arguments = [str(v) for v in (encoder_folder, catalogue.path, bags, 0.3, "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program, *arguments]
    with subprocess.Popen(command, text=True, env=environment, stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        run.stdout.readline()
        run.send_signal(signal.SIGINT)
        began = time.monotonic()
        run.wait(60)
    assert run.returncode != 0
    assert time.monotonic() - began < 30
    assert sorted(embed_tiles(encoder_folder, catalogue, bags).done)
