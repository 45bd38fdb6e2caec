"""A run on a tile list sees listed tiles only, by their weights, and resumes exactly."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from anlage.errors import CatalogueError, CheckpointError, RecipeError
from anlage.slides.catalogue import Catalogue
from anlage.tiles.stream import TileStream
from anlage.tiles.tile_list import TileList, write_tile_list
from anlage.training.log import read_metrics
from anlage.training.tile_pretrain import pretrain_tiles
from micro_recipe import micro_config

NAMES = ("glycogenstorage__HE", "helicobacterpylori__HE", "hodgkin__HE")
N_TILES = 16
Place = tuple[str, int, int]


def list_file(path: Path, *, heavy: float = 3.0, names: tuple[str, ...] = NAMES) -> str:
    """Sixteen tiles of three slides, of which the four of cluster 1 weigh more."""
    number = np.arange(N_TILES)
    tiles = TileList(
        slide_ids=names,
        slide_N=number % len(names),
        corner_N2=np.stack([number * 9, number * 5], axis=1),
        mpp_N=np.ones(N_TILES),
        tile_px_N=np.full(N_TILES, 48),
        weight_N=np.where(number < 4, heavy, 1.0),
        cluster_NT=(number < 4)[:, None].astype(np.int64),
    )
    write_tile_list(path, tiles)
    return str(path)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[int, Place]:
    """The tiles that training gets, by g."""
    found: dict[int, Place] = {}
    of_stream = TileStream.batches

    def noted(self, *arguments, **settings):
        for batch in of_stream(self, *arguments, **settings):
            for request in batch.requests:
                place = (request.slide_id, request.x, request.y)
                assert found.setdefault(request.g, place) == place
            yield batch

    monkeypatch.setattr(TileStream, "batches", noted)
    return found


def recipe(listed: str, *more: str, steps: int = 8):
    settings = (f"tiles.list={listed}", "tiles.magnifications={1.0: 1}", f"steps={steps}")
    return micro_config(*settings, "checkpoint_every=4", *more)


def losses(run_dir: Path) -> list[float]:
    return [entry["loss"] for entry in read_metrics(run_dir / "metrics.jsonl") if "loss" in entry]


def test_training_sees_the_list_and_resumes_exactly(
    catalogue: Catalogue, tmp_path: Path, seen: dict[int, Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    slides = catalogue.select(split="train")
    config = recipe(list_file(tmp_path / "tiles.parquet"))
    pretrain_tiles(config, slides, tmp_path / "whole", device="cpu")
    assert sorted(seen) == list(range(32))
    listed = {(NAMES[n % 3], n * 9, n * 5): 3.0 if n < 4 else 1.0 for n in range(N_TILES)}
    total = sum(listed.values())
    for first in (0, 16):  # two passes of sixteen draws
        counts = Counter(seen[g] for g in range(first, first + 16))
        assert counts.keys() <= listed.keys()
        assert all(abs(counts[p] - 16 * w / total) < 1 for p, w in listed.items())
    of_whole = dict(seen)

    seen.clear()
    stopped = tmp_path / "stopped"
    from anlage.training import tile_pretrain as module

    n_left = iter(range(6))
    step_of = module.on_device

    def until_stopped(batches, device):
        for batch in step_of(batches, device):
            if next(n_left, None) is None:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(module, "on_device", until_stopped)
    with pytest.raises(KeyboardInterrupt):
        pretrain_tiles(config, slides, stopped, device="cpu")
    monkeypatch.setattr(module, "on_device", step_of)
    result = pretrain_tiles(config, slides, stopped, device="cpu", resume=True)
    assert (result.steps, seen) == (8, of_whole)
    assert losses(stopped) == losses(tmp_path / "whole")


def test_a_changed_list_ends_the_run(catalogue: Catalogue, tmp_path: Path) -> None:
    slides = catalogue.select(split="train")
    listed, run = list_file(tmp_path / "tiles.parquet"), tmp_path / "run"
    pretrain_tiles(recipe(listed, steps=4), slides, run, device="cpu")
    noted = json.loads((run / "run.json").read_text())["tile_list"]
    assert (noted["source"], len(noted["sha256"])) == (listed, 64)
    list_file(tmp_path / "tiles.parquet", heavy=2.0)
    with pytest.raises(CheckpointError, match="needs the tile list it began with"):
        pretrain_tiles(recipe(listed, steps=4), slides, run, device="cpu", resume=True)


def test_what_contradicts_a_list_is_refused(catalogue: Catalogue, tmp_path: Path) -> None:
    listed = list_file(tmp_path / "tiles.parquet")
    for setting, says in (
        ("tiles.per_region=4", "list needs per_region=1"),
        ("tiles.base=tissue_area", "list needs base=slide"),
        ("tiles.balance={stain: 0.5}", "list needs no balance"),
    ):
        with pytest.raises(RecipeError, match=says):
            recipe(listed, setting)
    with pytest.raises(RecipeError, match="list needs magnifications as shares"):
        micro_config(
            f"tiles.list={listed}", "tiles.magnifications={low: 1.0, high: 2.0}", "encoder.mpp=1"
        )
    other = list_file(tmp_path / "other.parquet", names=("erosion__HE", *NAMES[1:]))
    with pytest.raises(CatalogueError, match=r"not among the 3 trained on \(erosion__HE\)"):
        pretrain_tiles(recipe(other), catalogue.select(split="train"), tmp_path / "r", device="cpu")
