"""A run that is looked at as it goes: when, what is kept, when it ends, and that it is the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from same_run import assert_same_run, before_steps, metrics_of, run_in_two, tensors_of
from watched import make_watched_tiles

from anlage.encoders.folder import load_encoder
from anlage.errors import CheckpointError, LabelledDataError, TrainingError
from anlage.slides.catalogue import Catalogue
from anlage.training.best import read_best
from anlage.training.run_saves import PretrainResult
from anlage.training.tile_pretrain import pretrain_tiles
from micro_recipe import micro_config

WATCH = ("watch.neighbours=3", "watch.probe_steps=5", "watch.pictures=false")
EVERY_TWO = ("steps=5", "watch.every=2", "optimizer.warmup=0", "optimizer.peak_lr=1e-2", *WATCH)
STILL = ("optimizer.peak_lr=1e-12", "optimizer.min_lr=0", "watch.patience=2", "watch.every=1")
UNLABELLED = {"watch_rankme", "watch_odcorr", "watch_feature_std", "watch_uniformity"}
LABELLED = {*UNLABELLED, "watch_knn", "watch_linear"}


def looks_of(run: Path) -> dict[int, set[str]]:
    """Row -> names of what was seen in it, for the rows with a look."""
    seen = {row["step"]: {n for n in row if n.startswith("watch_")} for row in metrics_of(run)}
    return {step: names for step, names in seen.items() if names}


@pytest.fixture(scope="module")
def watched_run(catalogue: Catalogue, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run, tiles = tmp_path_factory.mktemp("watched") / "run", make_watched_tiles()
    config = micro_config(*EVERY_TWO)
    assert pretrain_tiles(config, catalogue, run, device="cpu", watched=tiles).is_finished
    return run


def test_looks_are_at_their_steps_and_after_the_last_and_the_best_is_kept(
    watched_run: Path,
) -> None:
    assert looks_of(watched_run) == dict.fromkeys((1, 3, 4), LABELLED)
    scores = {row["step"] + 1: row.get("watch_knn") for row in metrics_of(watched_run)}
    best = max(value for value in scores.values() if value is not None)
    first = min(step for step, value in scores.items() if value == best)
    record = {"format": "best/1", "step": first, "metric": "watch_knn", "value": best}
    assert read_best(watched_run) == record
    assert load_encoder(watched_run / "best").config.provenance["step"] == first
    told = json.loads((watched_run / "run.json").read_text())["watched"]
    assert told == {"source": "watched.csv", "sha256": "0" * 64}
    chosen_by = load_encoder(watched_run / "best").config.provenance["watched"]
    groups = sorted({str(group) for group in make_watched_tiles().group_N})
    assert chosen_by == {**told, "cases": groups}
    last = load_encoder(watched_run / "encoder").config.provenance
    assert "cases" not in last.get("watched", {})


def test_watching_changes_no_weight(
    watched_run: Path, catalogue: Catalogue, tmp_path: Path
) -> None:
    config = micro_config("steps=5", *EVERY_TWO[2:])
    pretrain_tiles(config, catalogue, tmp_path / "run", device="cpu")
    seen, unseen = tensors_of(watched_run), tensors_of(tmp_path / "run")
    assert all(torch.equal(tensor, seen[name]) for name, tensor in unseen.items())
    assert not looks_of(tmp_path / "run")


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resume_of_a_watched_run_is_bit_identical(
    watched_run: Path, catalogue: Catalogue, tmp_path: Path, stop: int
) -> None:
    def pretrain(run: Path, *, resume: bool = False) -> PretrainResult:
        settings = {"device": "cpu", "watched": make_watched_tiles()}
        return pretrain_tiles(micro_config(*EVERY_TWO), catalogue, run, resume=resume, **settings)

    run_in_two(pretrain, tmp_path / "run", stop=stop)
    assert_same_run(watched_run, tmp_path / "run")
    assert read_best(tmp_path / "run") == read_best(watched_run)


def test_without_labels_the_tiles_of_the_step_are_looked_at_and_drawn(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    pretrain_tiles(
        micro_config(*EVERY_TWO, "steps=3", "watch.pictures=true", "views.source_px=44"),
        *(catalogue, run),
        device="cpu",
    )
    assert looks_of(run) == {1: UNLABELLED, 2: UNLABELLED}
    pictures = sorted(path.name for path in (run / "watch").iterdir())
    assert pictures == ["step-00000002.png", "step-00000003.png"]
    assert not (run / "best").exists()


def test_patience_ends_a_run_and_it_stays_ended(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that stand still are no better at the second and the third look."""
    run, config = tmp_path / "run", micro_config("steps=9", *WATCH, *STILL)

    def pretrain(*, resume: bool = False) -> PretrainResult:
        settings = {"device": "cpu", "watched": make_watched_tiles()}
        return pretrain_tiles(config, catalogue, run, resume=resume, **settings)

    first = pretrain()
    assert (first.steps, first.is_finished, first.ended_early) == (3, True, True)
    assert read_best(run)["step"] == 1
    rows, made_by = metrics_of(run), load_encoder(run / "encoder").config.provenance
    steps = []
    before_steps(monkeypatch, lambda training, _: steps.append(training.step))
    monkeypatch.setattr("anlage.training.run_record.git_commit", lambda: "f" * 40)
    assert pretrain(resume=True) == first
    assert metrics_of(run) == rows
    assert steps == []
    assert load_encoder(run / "encoder").config.provenance == made_by


def test_a_run_whose_patience_ends_with_its_last_step_did_not_end_early(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    config = micro_config("steps=3", *WATCH, *STILL)
    settings = {"device": "cpu", "watched": make_watched_tiles()}
    result = pretrain_tiles(config, catalogue, tmp_path / "run", **settings)
    assert (result.steps, result.is_finished, result.ended_early) == (3, True, False)


@pytest.mark.parametrize("other", [None, make_watched_tiles(fingerprint="1" * 64)])
def test_a_run_goes_on_with_the_tiles_it_was_watched_on(
    catalogue: Catalogue, tmp_path: Path, other
) -> None:
    """Without them it would forget its patience, and with others its best would mean nothing."""
    config = micro_config(*EVERY_TWO)
    settings = {"device": "cpu", "watched": make_watched_tiles()}
    pretrain_tiles(config, catalogue, tmp_path / "run", **settings)
    with pytest.raises(CheckpointError, match="needs the watched tiles it began with"):
        pretrain_tiles(config, catalogue, tmp_path / "run", resume=True, watched=other)


@pytest.mark.parametrize(
    ("tiles", "overrides", "error", "message"),
    [
        ({}, ("watch.neighbours=26",), LabelledDataError, "needs 26 watched tiles or more"),
        ({"size_px": 36}, (), LabelledDataError, "needs tiles of whole patches of 8 px; got tiles"),
        (None, ("watch.patience=2",), TrainingError, r"watch\.patience=2 needs labelled tiles"),
        ({}, ("watch.patience=2", "watch.every=null"), TrainingError, r"and watch\.every"),
    ],
    ids=["neighbours", "patches", "no-labels", "never"],
)
def test_what_cannot_be_watched_is_refused_before_anything_is_written(
    catalogue: Catalogue, tmp_path: Path, tiles, overrides, error, message
) -> None:
    run, config = tmp_path / "run", micro_config(*EVERY_TWO, *overrides)
    watched = None if tiles is None else make_watched_tiles(**tiles)
    with pytest.raises(error, match=message):
        pretrain_tiles(config, catalogue, run, device="cpu", watched=watched)
    assert [path.name for path in run.iterdir()] == [".lock"]


def test_tiles_without_labels_are_no_watched_tiles() -> None:
    with pytest.raises(LabelledDataError, match="needs a label for each watched tile"):
        make_watched_tiles(label_N=np.array([""] * 30))
