"""A stream over real files and a server that misbehaves: counted, redrawn, the rest unharmed."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faulty_server import Faults, serve
from synthetic_slides import overwrite_tile, write_tiff

from anlage.slides.catalogue import Catalogue
from anlage.slides.indexing.index import index_slides
from anlage.slides.reader import open_slide
from anlage.slides.regions import read_tiles
from anlage.tiles.quarantine import ErrorPolicy
from anlage.tiles.sampling import TileSampler, sampler_from_catalogue
from anlage.tiles.stream import TileBatch, TileStream

HANG_S = 120
N_STEPS = 40


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANLAGE_CACHE", str(tmp_path / "cache"))


def write_slide(path: Path, *, seed: int) -> Path:
    """A glass slide with a pink square over several JPEG tiles."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    pixels = random.normal(242, 1, (192, 256, 3))
    pixels[40:150, 40:150] = random.normal((190, 90, 160), 4, (110, 110, 3))
    level = np.clip(pixels, 0, 255).astype(np.uint8)
    return write_tiff(path, [level], mpp=1.0, compression="jpeg")


def tear(path: Path) -> None:
    """Damage the native tile at the right of the square, without a change of the file's size."""
    overwrite_tile(path, page=0, tile=4, data=b"torn")


def make_catalogue(folder: Path, *, prefix: str = "") -> Catalogue:
    """Slides a, b and c; behind a server where ``prefix`` is its address."""
    for seed, name in enumerate("abc"):
        write_slide(folder / f"{name}.tif", seed=seed)
    where = [f"{prefix}{name}.tif" for name in "abc"] if prefix else [folder]
    result = index_slides(where, folder / "slides.parquet", workers=1)
    assert result.catalogue is not None, result.refused
    assert len(result.catalogue) == 3
    return result.catalogue


def make_sampler(catalogue: Catalogue) -> TileSampler:
    return sampler_from_catalogue(
        catalogue,
        seed=3,
        size_px=24,
        batch_size=8,
        magnifications={1.0: 1.0},
        min_tissue=0.5,
        tiles_per_region=4,
    )


def within_time(work: Callable[[], Any]) -> Any:
    """What a call returns; fails if it hangs."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()), daemon=True)
    thread.start()
    thread.join(HANG_S)
    assert not thread.is_alive(), "hangs"
    assert found, "raised in its thread"
    return found[0]


def read(
    catalogue: Catalogue, midway: Callable[[], None] = lambda: None, **settings: Any
) -> tuple[list[TileBatch], TileStream]:
    """All batches; ``midway`` happens after the first."""

    def work() -> tuple[list[TileBatch], TileStream]:
        with TileStream(catalogue, make_sampler(catalogue), threads=3, **settings) as tiles:
            batches = tiles.batches(0, N_STEPS)
            first = next(batches)
            midway()
            return [first, *batches], tiles

    return within_time(work)


def assert_right_pixels(batches: list[TileBatch], folder: Path) -> None:
    """Every tile has the pixels that the undamaged slide has there."""
    requests = [r for batch in batches for r in batch.requests]
    pixels = torch.cat([batch.pixels for batch in batches])
    assert [r.g for r in requests] == list(range(len(requests)))
    for name in "abc":
        chosen = [i for i, r in enumerate(requests) if r.slide_id == name]
        if chosen:
            with open_slide(folder / f"{name}.tif") as slide:
                expected = read_tiles(slide, [requests[i].views[0] for i in chosen])
            found = pixels[chosen].permute(0, 2, 3, 1).numpy()
            np.testing.assert_array_equal(found, np.stack(expected))


def assert_counted(batches: list[TileBatch], tiles: TileStream) -> None:
    for batch in batches:
        assert batch.n_read_errors == sum(r.attempt for r in batch.requests)
    assert tiles.read_errors.total() == sum(b.n_read_errors for b in batches) > 0


def test_a_corrupt_tile_costs_only_the_tiles_that_touch_it(tmp_path: Path) -> None:
    catalogue = make_catalogue(tmp_path / "slides")
    shutil.copytree(tmp_path / "slides", tmp_path / "good")
    tear(tmp_path / "slides" / "b.tif")
    batches, tiles = read(catalogue)
    assert_counted(batches, tiles)
    assert set(tiles.read_errors) == {"b"}
    assert "b" in {r.slide_id for batch in batches for r in batch.requests}
    assert_right_pixels(batches, tmp_path / "good")


def test_a_slide_deleted_midway_costs_no_run(tmp_path: Path) -> None:
    """Its open handle reads on; a stream that opens it anew counts and redraws its tiles."""
    catalogue = make_catalogue(tmp_path)
    shutil.copytree(tmp_path, tmp_path.parent / "kept")
    batches, tiles = read(catalogue, (tmp_path / "b.tif").unlink)
    assert_right_pixels(batches, tmp_path.parent / "kept")
    assert not tiles.read_errors
    again, tiles = read(catalogue)
    assert_counted(again, tiles)
    assert set(tiles.read_errors) == {"b"}
    assert {r.slide_id for batch in again for r in batch.requests} == {"a", "c"}
    assert_right_pixels(again, tmp_path.parent / "kept")
    for whole, mended in zip(batches, again, strict=True):
        for i, (r, other) in enumerate(zip(whole.requests, mended.requests, strict=True)):
            if r.slide_id != "b":
                assert other == r
                assert torch.equal(whole.pixels[i], mended.pixels[i])


def test_a_slide_replaced_midway_gives_no_wrong_pixels(tmp_path: Path) -> None:
    catalogue = make_catalogue(tmp_path)
    kept = tmp_path.parent / "kept-too"
    shutil.copytree(tmp_path, kept)
    other = write_slide(tmp_path.parent / "other.tif", seed=77)
    with other.open("ab") as file:
        file.write(bytes(100))

    batches, _ = read(catalogue, lambda: other.replace(tmp_path / "b.tif"))
    assert_right_pixels(batches, kept)
    again, tiles = read(catalogue)
    assert_counted(again, tiles)
    assert set(tiles.read_errors) == {"b"}
    assert_right_pixels(again, kept)


def test_a_server_that_drops_answers_costs_no_tile(tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        catalogue = make_catalogue(tmp_path, prefix=server.url(""))
        server.faults = Faults(drop_every=3)
        batches, _ = read(catalogue)
        assert_right_pixels(batches, tmp_path)
        assert server.n_bodies > 0


def test_a_slide_replaced_behind_a_server_is_noticed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    with serve(tmp_path / "served") as server:
        catalogue = make_catalogue(tmp_path / "served", prefix=server.url(""))
        shutil.copytree(tmp_path / "served", kept)
        other = write_slide(tmp_path / "other.tif", seed=77)
        other.replace(tmp_path / "served" / "b.tif")
        batches, tiles = read(catalogue)
    assert_counted(batches, tiles)
    assert set(tiles.read_errors) == {"b"}
    assert_right_pixels(batches, kept)


RUN = """
import sys, time
sys.path[:0] = sys.argv[2:]
from test_stream_faults import run

run(sys.argv[1], 0, 80, pause_s=0.02)
"""


def run(folder: Path | str, first: int, last: int, *, pause_s: float = 0.0) -> None:
    """Write every batch to a file of its own, with quarantines."""
    folder = Path(folder)
    catalogue = Catalogue.open(folder / "slides.parquet")
    how: dict[str, Any] = {"errors": ErrorPolicy(quarantine_after=9)}
    how["journal"] = folder / "quarantine.jsonl"
    with TileStream(catalogue, make_sampler(catalogue), **how) as tiles:
        for step, batch in enumerate(tiles.batches(first, last), first):
            np.save(folder / f"{step:03d}.npy", batch.pixels.numpy())
            time.sleep(pause_s)


@pytest.mark.slow
def test_a_run_killed_after_a_slide_went_bad_goes_on_as_if_it_had_not_been(
    tmp_path: Path,
) -> None:
    """kill -9 in the middle, resumed from a step before: every tile as without the kill."""
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    make_catalogue(straight)
    tear(straight / "b.tif")
    shutil.copytree(straight, killed)
    run(straight, 0, 80)
    lines = (straight / "quarantine.jsonl").read_text().splitlines()
    (decided,) = [e["decided_at_step"] for line in lines if "from_step" in (e := json.loads(line))]
    here = Path(__file__).parent
    child = subprocess.Popen([sys.executable, "-c", RUN, str(killed), str(here), str(here.parent)])
    deadline = time.monotonic() + HANG_S
    while not (killed / f"{decided + 9:03d}.npy").exists():
        assert time.monotonic() < deadline
        assert child.poll() is None, "ended before it could be killed"
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    run(killed, max(decided - 3, 0), 80)
    journals = [(folder / "quarantine.jsonl").read_bytes() for folder in (straight, killed)]
    assert journals[0] == journals[1]
    for step in range(80):
        one, other = (np.load(folder / f"{step:03d}.npy") for folder in (straight, killed))
        np.testing.assert_array_equal(one, other)
