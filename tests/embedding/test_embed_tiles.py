import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from small_encoder import make_encoder
from synthetic_slides import overwrite_tile

from anlage.bags.store import read_bag, write_bag
from anlage.embedding.bag_target import BagTarget
from anlage.embedding.embed_tiles import embed_tiles
from anlage.embedding.growing_bag import GrowingBag
from anlage.encoders.folder import load_encoder, save_encoder
from anlage.errors import BagError, CatalogueError, EncoderError
from anlage.slides.indexing.index import index_slides
from anlage.slides.levels import read_tile


@pytest.fixture
def exact(monkeypatch):
    """Keeps the float32 features of every slide, before they are rounded to float16."""
    kept, put, growing_bag = {}, GrowingBag.put, BagTarget.growing_bag

    def begin(target, row, n_tiles):
        growing = growing_bag(target, row, n_tiles)
        kept[row.slide_id] = np.full(growing.features_LD.shape, np.nan, np.float32)
        slide_of[id(growing)] = row.slide_id
        return growing

    def keep(growing, rows, embedding, *tokens):
        kept[slide_of[id(growing)]][rows] = embedding
        put(growing, rows, embedding, *tokens)

    slide_of = {}
    monkeypatch.setattr(BagTarget, "growing_bag", begin)
    monkeypatch.setattr(GrowingBag, "put", keep)
    return kept


def fingerprints(folder: Path) -> dict[str, tuple[int, int]]:
    return {p.stem: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.glob("*.h5")}


def names(refused) -> list[str]:
    return [Path(slide.uri).stem for slide in refused]


def test_every_tile_is_embedded_as_if_alone(catalogue, encoder_folder, tmp_path):
    result = embed_tiles(encoder_folder, catalogue, tmp_path / "bags", batch_size=16)
    assert sorted(result.done) == ["a", "b", "c", "d"]
    assert result.empty == ["bb"]
    assert (result.skipped, result.refused) == ([], [])
    encoder, n_tiles = load_encoder(encoder_folder), 0
    for row in catalogue.rows():
        bag = read_bag(tmp_path / "bags" / f"{row.slide_id}.h5")
        assert bag.slide_id == row.slide_id
        assert bag.attributes.encoder_fingerprint == encoder.fingerprint
        assert bag.attributes.slide_fingerprint == row.fingerprint
        assert bag.features.shape == (len(bag.coords), 24)
        n_tiles += len(bag.coords)
        with catalogue.open_slide(row.slide_id) as slide:
            for (x, y), feature in zip(bag.coords.tolist(), bag.features, strict=True):
                tile = read_tile(slide, x, y, size_px=32, mpp=1.0)
                pixels = torch.from_numpy(tile).permute(2, 0, 1)[None]
                expected = encoder.embed(pixels)[0].numpy()
                np.testing.assert_allclose(feature, expected, rtol=6e-4, atol=1e-6)
    assert result.n_tiles == n_tiles > 120


def test_empty_slide_gets_an_empty_bag(catalogue, encoder_folder, tmp_path):
    embed_tiles(encoder_folder, catalogue, tmp_path / "bags")
    bag = read_bag(tmp_path / "bags" / "bb.h5")
    assert bag.features.shape == (0, 24)
    assert bag.coords.shape == (0, 2)


def test_embeddings_do_not_depend_on_batch_size_threads_or_company(
    catalogue, encoder_folder, tmp_path, exact
):
    embed_tiles(encoder_folder, catalogue, tmp_path / "7", batch_size=7, threads=1)
    expected = dict(exact)
    for batch_size in (1, 64):
        exact.clear()
        embed_tiles(encoder_folder, catalogue, tmp_path / str(batch_size), batch_size=batch_size)
        assert exact.keys() == expected.keys()
        for name, features in exact.items():
            np.testing.assert_allclose(features, expected[name], rtol=0, atol=1e-6)
    exact.clear()
    alone = catalogue.select(slide_id="c")
    embed_tiles(encoder_folder, alone, tmp_path / "alone", batch_size=7, threads=3)
    assert list(exact) == ["c"]
    np.testing.assert_allclose(exact["c"], expected["c"], rtol=0, atol=1e-6)


def test_second_run_keeps_every_bag(catalogue, encoder_folder, tmp_path):
    embed_tiles(encoder_folder, catalogue, tmp_path / "bags")
    before = fingerprints(tmp_path / "bags")
    again = embed_tiles(encoder_folder, catalogue.path, tmp_path / "bags", batch_size=5)
    assert (again.skipped, again.empty) == (["a", "b", "c", "d"], ["bb"])
    assert (again.done, again.refused, again.n_tiles) == ([], [], 0)
    assert fingerprints(tmp_path / "bags") == before


def test_a_missing_bag_alone_is_made(catalogue, encoder_folder, tmp_path):
    embed_tiles(encoder_folder, catalogue, tmp_path / "bags")
    before = read_bag(tmp_path / "bags" / "c.h5")
    (tmp_path / "bags" / "c.h5").unlink()
    again = embed_tiles(encoder_folder, catalogue, tmp_path / "bags")
    assert (again.done, again.skipped, again.empty) == (["c"], ["a", "b", "d"], ["bb"])
    after = read_bag(tmp_path / "bags" / "c.h5")
    np.testing.assert_allclose(after.features, before.features, rtol=1e-3, atol=1e-6)


def test_bags_of_another_grid_or_encoder_are_refused_up_front(catalogue, encoder_folder, tmp_path):
    bags = tmp_path / "bags"
    embed_tiles(encoder_folder, catalogue, bags)
    (bags / "a.h5").unlink()  # the first slide is missing, and is not made before the refusal
    before = fingerprints(bags)
    for settings, says in (
        ({"stride_px": 16}, "b.h5: was made with stride_px 32; this run has 16"),
        ({"min_tissue": 0.5}, "min_tissue 0.25; this run has 0.5"),
    ):
        with pytest.raises(BagError, match=f"{says}.*another folder with -o, or delete"):
            embed_tiles(encoder_folder, catalogue, bags, **settings)
    with pytest.raises(BagError, match="encoder_fingerprint"):
        embed_tiles(load_encoder(encoder_folder).untrained(1), catalogue, bags)
    assert fingerprints(bags) == before


def test_bag_of_another_slide_or_mask_is_refused(catalogue, encoder_folder, tmp_path):
    bags = tmp_path / "bags"
    embed_tiles(encoder_folder, catalogue, bags)
    bag = read_bag(bags / "b.h5")
    write_bag(bags / "b.h5", replace(bag, features=bag.features[1:], coords=bag.coords[1:]))
    with pytest.raises(BagError, match=r"b\.h5: holds other tiles"):
        embed_tiles(encoder_folder, catalogue, bags)
    write_bag(
        bags / "b.h5", replace(bag, attributes=replace(bag.attributes, slide_fingerprint="x"))
    )
    with pytest.raises(BagError, match="slide_fingerprint x"):
        embed_tiles(encoder_folder, catalogue, bags)


def test_damaged_bag_is_refused_with_the_remedy(catalogue, encoder_folder, tmp_path):
    bags = tmp_path / "bags"
    embed_tiles(encoder_folder, catalogue, bags)
    (bags / "c.h5").write_bytes((bags / "c.h5").read_bytes()[:3000])
    with pytest.raises(BagError, match=r"c\.h5: .*Delete it and embed the slide again"):
        embed_tiles(encoder_folder, catalogue, bags)


def test_bad_slides_are_refused_and_the_rest_go_on(slides, catalogue, encoder_folder, tmp_path):
    (slides / "a.tif").unlink()
    n_bytes = (slides / "c.tif").stat().st_size
    (slides / "c.tif").write_bytes(bytes(n_bytes))
    result = embed_tiles(encoder_folder, catalogue, tmp_path / "bags", batch_size=8)
    assert (sorted(result.done), result.empty) == (["b", "d"], ["bb"])
    assert sorted(names(result.refused)) == ["a", "c"]
    assert "cannot be found" in next(r.reason for r in result.refused if "a.tif" in r.uri)
    assert not (tmp_path / "bags" / "a.h5").exists()
    assert not (tmp_path / "bags" / "c.h5").exists()


def test_one_damaged_tile_costs_its_slide_until_it_is_repaired(tmp_path, slides, encoder_folder):
    import tifffile

    pixels = tifffile.imread(slides / "b.tif")
    tifffile.imwrite(
        slides / "b.tif",
        pixels,
        tile=(64, 112),
        photometric="rgb",
        compression="jpeg",
        resolution=(1e4 / 0.5, 1e4 / 0.5),
        resolutionunit="CENTIMETER",
        metadata=None,
    )
    catalogue = index_slides([slides], tmp_path / "slides.parquet").catalogue
    shutil.copy(slides / "b.tif", tmp_path / "whole")
    overwrite_tile(slides / "b.tif", page=0, tile=7, data=None)
    result = embed_tiles(encoder_folder, catalogue, tmp_path / "bags", batch_size=8)
    assert names(result.refused) == ["b"]
    assert sorted(result.done) == ["a", "c", "d"]
    assert not (tmp_path / "bags" / "b.h5").exists()
    shutil.copy(tmp_path / "whole", slides / "b.tif")
    again = embed_tiles(encoder_folder, catalogue, tmp_path / "bags", batch_size=8)
    assert (again.done, again.refused) == (["b"], [])


def test_a_slide_coarser_than_the_encoder_is_refused(catalogue, tmp_path):
    encoder = make_encoder(mpp=0.25)
    result = embed_tiles(encoder, catalogue, tmp_path / "bags")
    assert sorted(names(result.refused)) == ["a", "b", "bb", "c", "d"]
    assert all("too coarse" in slide.reason for slide in result.refused)


def test_features_that_do_not_fit_are_refused_by_slide(catalogue, tmp_path):
    encoder = make_encoder(mpp=1.0)
    with torch.no_grad():
        encoder.model.norm.weight.mul_(1e6)
    result = embed_tiles(encoder, catalogue, tmp_path / "bags")
    assert (result.done, result.empty) == ([], ["bb"])
    assert all("within float16's 65504; got" in slide.reason for slide in result.refused)
    assert len(result.refused) == 4


def test_record_says_what_was_done_by_what(slides, catalogue, encoder_folder, tmp_path):
    (slides / "d.tif").unlink()
    embed_tiles(encoder_folder, catalogue, tmp_path / "bags", min_tissue=0.3, batch_size=9)
    text = (tmp_path / "bags" / "embedding.json").read_text()
    record = json.loads(text)
    assert record["format"] == "embedding/1"
    assert record["encoder_fingerprint"] == load_encoder(encoder_folder).fingerprint
    assert record["catalogue_fingerprint"] == catalogue.fingerprint
    assert record["tiles"] == {"size_px": 32, "mpp": 1.0, "stride_px": 32, "min_tissue": 0.3}
    assert sorted(record["done"]) == ["a", "b", "c"]
    assert record["empty"] == ["bb"]
    assert [slide["uri"] for slide in record["refused"]] == ["slides/d.tif"]
    assert record["batch_size"] == 9
    assert {"versions", "commit", "machine", "seconds", "started"} <= record.keys()
    assert socket.gethostname() not in text


def read_record(bags):
    return json.loads((bags / "embedding.json").read_text())


def test_a_run_with_nothing_to_do_keeps_the_record(
    catalogue, encoder_folder, tmp_path, monkeypatch
):
    embed_tiles(encoder_folder, catalogue, tmp_path / "bags")
    before = (tmp_path / "bags" / "embedding.json").read_bytes()
    monkeypatch.setattr("anlage.embedding.embed_record.git_commit", lambda: "f" * 40)
    assert embed_tiles(encoder_folder, catalogue, tmp_path / "bags").done == []
    assert (tmp_path / "bags" / "embedding.json").read_bytes() == before


def test_a_record_tells_of_every_run_that_made_the_bags(
    slides, catalogue, encoder_folder, tmp_path, monkeypatch
):
    bags = tmp_path / "bags"
    commits = iter("123")
    monkeypatch.setattr("anlage.embedding.embed_record.git_commit", lambda: next(commits))
    for name in "cd":
        (slides / f"{name}.tif").rename(slides / f"{name}.hidden")
    first = embed_tiles(encoder_folder, catalogue, bags)
    (slides / "c.hidden").rename(slides / "c.tif")
    second = embed_tiles(encoder_folder, catalogue, bags)
    (slides / "d.hidden").rename(slides / "d.tif")
    third = embed_tiles(encoder_folder, catalogue, bags)
    record = read_record(bags)
    assert (sorted(record["done"]), record["empty"]) == (["a", "b", "c", "d"], ["bb"])
    assert (record["skipped"], record["refused"]) == ([], [])
    assert record["n_tiles"] == first.n_tiles + second.n_tiles + third.n_tiles
    assert record["commit"] == "3"
    told = [(sorted(r["done"]), r["empty"], r["n_tiles"], r["commit"]) for r in record["runs"]]
    assert told == [
        (["a", "b"], ["bb"], first.n_tiles, "1"),
        (["c"], [], second.n_tiles, "2"),
        (["d"], [], third.n_tiles, "3"),
    ]


def test_bags_of_a_killed_run_are_named_as_skipped(catalogue, encoder_folder, tmp_path):
    """It left no record of them; nor does a broken record tell anything."""
    embed_tiles(encoder_folder, catalogue, tmp_path / "bags")
    (tmp_path / "bags" / "embedding.json").write_text('{"form')
    (tmp_path / "bags" / "c.h5").unlink()
    embed_tiles(encoder_folder, catalogue, tmp_path / "bags")
    record = read_record(tmp_path / "bags")
    assert (record["done"], record["skipped"]) == (["c"], ["a", "b", "bb", "d"])


def test_another_catalogue_of_the_same_bags_is_named(catalogue, encoder_folder, tmp_path):
    embed_tiles(encoder_folder, catalogue, tmp_path / "bags")
    fewer = catalogue.select(slide_id="a")
    embed_tiles(encoder_folder, fewer, tmp_path / "bags")
    record = read_record(tmp_path / "bags")
    assert record["catalogue_fingerprint"] == fewer.fingerprint
    assert record["runs"][0]["catalogue_fingerprint"] == catalogue.fingerprint
    assert record["done"] == ["a"]


def test_a_catalogue_without_slides(catalogue, encoder_folder, tmp_path):
    nothing = catalogue.select(slide_id="no such slide")
    result = embed_tiles(encoder_folder, nothing, tmp_path / "bags")
    assert (result.done, result.skipped, result.n_tiles) == ([], [], 0)


def test_leftovers_of_killed_runs_are_removed_once_old(catalogue, encoder_folder, tmp_path):
    bags = tmp_path / "bags"
    bags.mkdir()
    for name in (".a.h5.01234567.part", ".b.h5.01234567.part"):
        (bags / name).write_bytes(b"half")
    old = time.time() - 7200
    os.utime(bags / ".a.h5.01234567.part", (old, old))
    embed_tiles(encoder_folder, catalogue.select(slide_id="bb"), bags)
    assert [path.name for path in bags.glob(".*.part")] == [".b.h5.01234567.part"]


@pytest.mark.parametrize("setting", ["batch_size", "threads", "stride_px"])
def test_absurd_settings_are_refused(catalogue, encoder_folder, tmp_path, setting):
    with pytest.raises(ValueError, match=setting):
        embed_tiles(encoder_folder, catalogue, tmp_path / "bags", **{setting: 0})
    assert not (tmp_path / "bags").exists()


def test_missing_encoder_and_catalogue_are_named(catalogue, encoder_folder, tmp_path):
    with pytest.raises(EncoderError, match="nowhere"):
        embed_tiles(tmp_path / "nowhere", catalogue, tmp_path / "bags")
    with pytest.raises(CatalogueError, match="nowhere"):
        embed_tiles(encoder_folder, tmp_path / "nowhere.parquet", tmp_path / "bags")


PROGRAM = """
import logging, resource, sys, time
import torch
from anlage.embedding.embed_tiles import embed_tiles
from anlage.encoders.tile_encoder import TileEncoder
torch.set_num_threads(1)
encoder, catalogue, output, pause_s, limit_bytes = sys.argv[1:]
fast = TileEncoder.embed
def slow(self, pixels):
    time.sleep(float(pause_s))
    return fast(self, pixels)
TileEncoder.embed = slow
if int(limit_bytes):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit_bytes),) * 2)
try:
    result = embed_tiles(encoder, catalogue, output, batch_size=8)
except OSError as error:
    print(type(error).__name__, error.errno, error.filename)
    raise SystemExit(1)
print(*result.done, "skipped", *result.skipped)
"""


def start(encoder: Path, catalogue: Path, output: Path, *, pause_s=0.0, limit_bytes=0):
    arguments = [str(value) for value in (encoder, catalogue, output, pause_s, limit_bytes)]
    command = [sys.executable, "-c", PROGRAM, *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def wait_until(is_so, limit_s: float = 600.0) -> None:
    started = time.monotonic()
    while not is_so():
        assert time.monotonic() - started < limit_s
        time.sleep(0.005)


@pytest.mark.slow
def test_killed_and_run_again_every_slide_is_whole_and_none_redone(
    catalogue, encoder_folder, tmp_path
):
    bags = tmp_path / "bags"
    for n_bags in (1, 3):
        with start(encoder_folder, catalogue.path, bags, pause_s=0.15) as run:
            wait_until(lambda n=n_bags: len(fingerprints(bags)) >= n)
            run.send_signal(signal.SIGKILL)
        assert run.returncode == -signal.SIGKILL
    before = fingerprints(bags)
    assert 3 <= len(before) < 5
    last = embed_tiles(encoder_folder, catalogue, bags, batch_size=8)
    assert sorted([*last.skipped, *last.empty]) == sorted(before)
    assert sorted([*last.done, *last.empty, *last.skipped]) == ["a", "b", "bb", "c", "d"]
    after = fingerprints(bags)
    assert {name: after[name] for name in before} == before
    embed_tiles(encoder_folder, catalogue, tmp_path / "straight", batch_size=8)
    for name in after:
        straight = read_bag(tmp_path / "straight" / f"{name}.h5")
        np.testing.assert_allclose(read_bag(bags / f"{name}.h5").features, straight.features, 1e-3)


@pytest.mark.slow
def test_full_disk_names_the_file_and_keeps_what_is_finished(catalogue, encoder_folder, tmp_path):
    bags = tmp_path / "bags"
    embed_tiles(encoder_folder, catalogue.select(slide_id="a"), bags)
    largest = (bags / "a.h5").stat().st_size
    (bags / "a.h5").unlink()
    embed_tiles(encoder_folder, catalogue.select(slide_id="b"), bags)
    run = start(encoder_folder, catalogue.path, bags, limit_bytes=largest - 100)
    output, _ = run.communicate(timeout=300)
    assert run.returncode == 1
    assert output.split() == ["OSError", "27", str(bags / "a.h5")]
    assert not (bags / "a.h5").exists()
    assert list(bags.glob(".*.part")) == []
    read_bag(bags / "b.h5")
    assert "a" in embed_tiles(encoder_folder, catalogue, bags).done


def test_trident_reads_the_bag_with_h5py_alone(catalogue, encoder_folder, tmp_path):
    embed_tiles(encoder_folder, catalogue.select(slide_id="a"), tmp_path / "bags", stride_px=24)
    with h5py.File(tmp_path / "bags" / "a.h5") as file:
        attributes = dict(file["coords"].attrs)
        assert file["features"].shape[0] == file["coords"].shape[0] > 63
    assert attributes["patch_size_level0"] == 64
    assert (attributes["patch_size"], attributes["overlap"]) == (32, 8)
    assert (attributes["target_magnification"], attributes["level0_magnification"]) == (10, 20)


@pytest.mark.slow
def test_real_slides_end_to_end(tmp_path):
    from anlage.samples import slides_folder, slides_labels

    few = sorted(slides_folder().glob("*"))[:3]
    catalogue = index_slides(few, tmp_path / "s.parquet", labels=slides_labels()).catalogue
    encoder = make_encoder(mpp=1.0)
    save_encoder(tmp_path / "encoder", encoder.model, encoder.config)
    result = embed_tiles(tmp_path / "encoder", catalogue, tmp_path / "bags", min_tissue=0.5)
    assert len(result.done) == 3
    assert result.refused == []
    for name in result.done:
        bag = read_bag(tmp_path / "bags" / f"{name}.h5")
        spread = bag.features.astype(np.float64).std(axis=0)
        assert (spread > 0).all()
