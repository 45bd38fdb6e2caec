"""What a recipe says of tiles is what is drawn, read and reported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from anlage import samples
from anlage.encoders.folder import load_encoder
from anlage.errors import CatalogueError, RecipeError, SlideError
from anlage.slides.catalogue import Catalogue
from anlage.slides.indexing.index import index_slides
from anlage.training.log import read_metrics
from anlage.training.tile_feed import tile_sampler, tile_stream
from anlage.training.tile_pretrain import pretrain_tiles
from micro_recipe import micro_config

RANGE = ("tiles.magnifications={low: 1.0, high: 2.0, law: linear}", "encoder.mpp=1.2")


def test_the_sampler_is_the_recipes(catalogue: Catalogue) -> None:
    slides = catalogue.select(split="train")
    config = micro_config(*RANGE, "tiles.per_region=4", "seed=9")
    sampler = tile_sampler(config, slides)
    assert (sampler.size_px, sampler.seed, sampler.batch_size) == (48, 9, 4)
    assert sampler.tiles_per_region == 4
    mpps = {sampler.draw(g).mpp for g in range(64)}
    assert len(mpps) > 10
    assert 1.0 <= min(mpps) < 1.3
    assert 1.7 < max(mpps) <= 2.0


def test_balance_and_base_change_the_shares(catalogue: Catalogue) -> None:
    slides = catalogue.select(split="train")

    def share(*overrides: str) -> dict[str, float]:
        sampler = tile_sampler(micro_config("tiles.min_tissue=0.1", *overrides), slides)
        drawn = [sampler.draw(g).slide_id for g in range(256)]
        return {name: drawn.count(name) / 256 for name in set(drawn)}

    area = {row.slide_id: row.tissue_area_mm2 for row in slides.rows()}
    total = sum(area.values())
    assert share() == pytest.approx(dict.fromkeys(area, 1 / 3), abs=0.04)
    by_area = {name: one / total for name, one in area.items()}
    assert share("tiles.base=tissue_area") == pytest.approx(by_area, abs=0.04)
    balanced = share("tiles.base=tissue_area", "tiles.balance={slide_id: 1.0}")
    assert balanced == pytest.approx(dict.fromkeys(area, 1 / 3), abs=0.04)


def test_a_column_that_is_not_there_is_refused_by_name(catalogue: Catalogue) -> None:
    with pytest.raises(CatalogueError, match=r"tiles\.balance names; has no scanner among"):
        tile_sampler(micro_config("tiles.balance={scanner: 0.5}"), catalogue)
    with pytest.raises(CatalogueError, match=r"single values .*; level_downsamples hold lists"):
        tile_sampler(micro_config("tiles.balance={level_downsamples: 0.5}"), catalogue)


def test_a_range_of_resolutions_makes_an_encoder_of_the_mpp_named(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    config = micro_config("steps=2", *RANGE, "tiles.colour=srgb")
    pretrain_tiles(config, catalogue, tmp_path / "run", device="cpu")
    encoder = load_encoder(tmp_path / "run" / "encoder").config
    assert (encoder.mpp, encoder.colour) == (1.2, "srgb")


def test_rejections_stand_in_the_metrics(catalogue: Catalogue, tmp_path: Path) -> None:
    filters = "tiles.filters={hsv: {min_share: 0.8}, pen: {}}"
    config = micro_config("steps=4", "tiles.min_tissue=0.1", filters)
    pretrain_tiles(config, catalogue, tmp_path / "run", device="cpu")
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert sum(row["rejected_hsv"] for row in rows) > 0
    assert {row["rejected_pen"] for row in rows} == {0}
    assert "rejected_blur" not in rows[0]
    assert "quarantined" not in rows[0]


@pytest.fixture
def vanishing(tmp_path: Path) -> tuple[Catalogue, Path]:
    """A catalogue of two slides, one of which is gone since."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in ("glycogenstorage__HE", "hodgkin__HE"):
        shutil.copy(samples.slides_folder() / f"{name}.tiff", folder)
    result = index_slides([folder], tmp_path / "slides.parquet")
    assert result.catalogue is not None
    (folder / "hodgkin__HE.tiff").unlink()
    return result.catalogue, tmp_path / "run"


def test_a_quarantine_is_in_the_metrics_and_the_journal(
    vanishing: tuple[Catalogue, Path],
) -> None:
    catalogue, run = vanishing
    config = micro_config("steps=60", "tiles.split=null", "tiles.quarantine_after=5")
    with tile_stream(config, catalogue, run_dir=run.parent, threads=2) as stream:
        list(stream.batches(0, 60))
    (line,) = [
        entry
        for text in (run.parent / "quarantine.jsonl").read_text().splitlines()
        if "from_step" in (entry := json.loads(text))
    ]
    assert line["slide_id"] == "hodgkin__HE"
    assert line["n_errors"] >= 5
    short = micro_config("steps=3", "tiles.split=null", "tiles.quarantine_after=5")
    (run.parent / "quarantine.jsonl").rename(run.parent / "aside.jsonl")
    run.mkdir()
    (run / "quarantine.jsonl").write_text(json.dumps(line | {"from_step": 0}) + "\n")
    pretrain_tiles(short, catalogue, run, device="cpu")
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["quarantined"] for row in rows] == [1, 1, 1]
    assert [row["read_errors"] for row in rows] == [0, 0, 0]


def test_errors_can_end_the_run(vanishing: tuple[Catalogue, Path]) -> None:
    catalogue, run = vanishing
    config = micro_config("steps=9", "tiles.split=null", "tiles.on_error=raise")
    with pytest.raises(SlideError, match=r"hodgkin__HE\.tiff"):
        pretrain_tiles(config, catalogue, run, device="cpu")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tiles.magnifications={}", "needs at least one mpp"),
        ("tiles.magnifications={low: 2.0, high: 1.0}", "needs low < high"),
        ("tiles.filters={blur: {mpp: 0.5}}", "filters.blur.mpp needs at least 1, the coarsest"),
        ("tiles.quarantine_after=0", "tiles.quarantine_after"),
        ("tiles.balance={stain: 2}", "tiles.balance.stain"),
        ("tiles.filters={pen: {inks: [violet]}}", "tiles.filters.pen.inks"),
    ],
)
def test_a_source_that_cannot_work_is_refused(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        micro_config(override)


def test_a_range_needs_to_be_told_what_the_encoder_is_for() -> None:
    with pytest.raises(RecipeError, match=r"encoder\.mpp needs a value"):
        micro_config(RANGE[0])
