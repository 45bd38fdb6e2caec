"""The end of a run on larger tiles and views, or on finer ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from same_run import assert_same_run, before_steps, metrics_of, run_in_two

from anlage import samples
from anlage.encoders.folder import load_encoder
from anlage.errors import RecipeError, TrainingError
from anlage.slides.catalogue import Catalogue
from anlage.slides.indexing.index import index_slides
from anlage.training import step_views
from anlage.training.log import read_metrics
from anlage.training.tile_pretrain import pretrain_tiles
from micro_recipe import micro_config

LARGER = "last_stage={start: 0.5, source_px: 80, global_px: 64, local_px: 24}"
FINER = (
    "last_stage={start: 0.5, source_px: 48, global_px: 32, local_px: 16, mpp_factor: 0.5}",
    "tiles.magnifications={2.0: 1.0}",
)
GRAM = "objective.gram={start: 0.25}"
TURN = 3


@pytest.fixture(scope="module")
def larger(catalogue: Catalogue, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps without a stop, three of them larger."""
    run = tmp_path_factory.mktemp("larger") / "run"
    config = micro_config("steps=6", LARGER, GRAM)
    assert pretrain_tiles(config, catalogue, run, device="cpu").is_finished
    return run


def test_tiles_and_views_are_larger_from_the_turn_on(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut, sizes, tiles = step_views.views, [], []

    def measured(*args, **settings):
        made = cut(*args, **settings)
        sizes.append((made.global_crops.shape[-1], made.local_crops.shape[-1]))
        return made

    monkeypatch.setattr(step_views, "views", measured)
    before_steps(monkeypatch, lambda _, batch: tiles.append(batch.pixels.shape[-1]))
    config = micro_config("steps=6", LARGER)
    pretrain_tiles(config, catalogue, tmp_path / "run", device="cpu")
    assert sizes == [(32, 16)] * TURN + [(64, 24)] * TURN
    assert tiles == [48] * TURN + [80] * TURN
    encoder = load_encoder(tmp_path / "run" / "encoder").config
    assert (encoder.tile_px, encoder.mpp) == (32, 1.0)


def test_tiles_are_finer_from_the_turn_on_and_the_encoder_is_for_those_before(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    before_steps(monkeypatch, lambda _, batch: drawn.append({r.mpp for r in batch.requests}))
    run = tmp_path / "run"
    config = micro_config("steps=4", *FINER, "encoder.tile_px=null")
    pretrain_tiles(config, catalogue, run, device="cpu")
    assert drawn == [{2.0}] * 2 + [{1.0}] * 2
    encoder = load_encoder(run / "encoder").config
    assert (encoder.tile_px, encoder.mpp) == (32, 2.0)
    pretrain_tiles(config, catalogue, run, device="cpu", resume=True)
    assert load_encoder(run / "encoder").config == encoder


@pytest.mark.parametrize("stop", [TURN - 1, TURN, TURN + 1])
def test_resume_about_the_turn_is_bit_identical(
    larger: Path, catalogue: Catalogue, tmp_path: Path, stop: int
) -> None:
    def pretrain(run: Path, *, resume: bool = False):
        config = micro_config("steps=6", LARGER, GRAM)
        return pretrain_tiles(config, catalogue, run, resume=resume, device="cpu")

    run_in_two(pretrain, tmp_path / "run", stop=stop)
    assert_same_run(larger, tmp_path / "run")


@pytest.fixture
def vanishing(tmp_path: Path) -> Catalogue:
    """A catalogue of two slides, one of which is gone since."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in ("glycogenstorage__HE", "hodgkin__HE"):
        shutil.copy(samples.slides_folder() / f"{name}.tiff", folder)
    result = index_slides([folder], tmp_path / "slides.parquet")
    assert result.catalogue is not None
    (folder / "hodgkin__HE.tiff").unlink()
    return result.catalogue


def test_a_quarantine_of_the_first_stage_holds_in_the_last(
    vanishing: Catalogue, tmp_path: Path
) -> None:
    """It takes effect with a later window of tiles, so it is the journal that carries it over."""
    run = tmp_path / "run"
    run.mkdir()
    line = {"slide_id": "hodgkin__HE", "from_step": 0, "decided_at_step": 0, "n_errors": 1}
    journal = run / "quarantine.jsonl"
    journal.write_text(json.dumps(line | {"first_error": "gone"}) + "\n")
    quarantine = ("tiles.split=null", "tiles.quarantine_after=1")
    pretrain_tiles(micro_config("steps=4", LARGER, *quarantine), vanishing, run, device="cpu")
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["quarantined"] for row in rows] == [1] * 4
    assert [row["read_errors"] for row in rows] == [0] * 4


def test_the_journal_of_both_stages_is_one_and_is_the_same_after_a_stop(
    vanishing: Catalogue, tmp_path: Path
) -> None:
    config = micro_config("steps=4", LARGER, "tiles.split=null", "tiles.quarantine_after=100")

    def pretrain(run: Path, *, resume: bool = False):
        return pretrain_tiles(config, vanishing, run, resume=resume, device="cpu")

    pretrain(tmp_path / "straight")
    run_in_two(pretrain, tmp_path / "run", stop=3)
    assert_same_run(tmp_path / "straight", tmp_path / "run")
    journals = [(tmp_path / name / "quarantine.jsonl").read_text() for name in ("straight", "run")]
    assert journals[0] == journals[1]
    steps = [json.loads(line)["step"] for line in journals[0].splitlines()]
    assert min(steps) < 2 <= max(steps)
    assert sum(row["read_errors"] for row in metrics_of(tmp_path / "run")) == len(steps)


def test_a_last_stage_that_no_slide_can_give_is_refused_before_the_first_step(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    stage = "last_stage={start: 0.5, source_px: 48, global_px: 32, local_px: 16, mpp_factor: 0.01}"
    with pytest.raises(TrainingError, match=r"needs slides that give 48 px tiles at 0\.01 mpp"):
        pretrain_tiles(micro_config("steps=4", stage), catalogue, tmp_path / "run", device="cpu")
    assert not read_metrics(tmp_path / "run" / "metrics.jsonl")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            (FINER[0].replace("0.5}", "2.0}"), "tiles.filters={blur: {mpp: 1.0}}"),
            "last_stage: filters.blur.mpp needs at least",
        ),
        (
            ("views.mode=extended_context", LARGER.replace("80", "64")),
            "last_stage: extended_context with global_px=64 needs tiles of at least",
        ),
        ((LARGER.replace("64", "60"),), "last_stage.global_px needs a multiple"),
        ((LARGER.replace("80", "56"),), "last_stage.source_px=56 needs at least"),
    ],
    ids=["blur", "context", "patches", "small"],
)
def test_a_last_stage_that_does_not_fit_is_refused(
    overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        micro_config(*overrides)
