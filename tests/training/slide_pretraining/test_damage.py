"""A damaged bag costs slide pretraining that slide, never the run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from same_run import assert_same_run, metrics_of
from slide_runs import (
    micro_slide_config,
    slides_stopped_after,
    striped_bag,
    write_bags,
    write_table,
)

from anlage.bags.loader import BagSet
from anlage.bags.slide_labels import SlideLabels
from anlage.bags.store import bag_place, write_bag
from anlage.errors import BagError, CheckpointError
from anlage.training.run_saves import PretrainResult
from anlage.training.slide_pretraining.pretrain import pretrain_slides
from anlage.training.slide_pretraining.state import FORMAT


def pretrain(bags: Path, run: Path, *overrides: str, **how) -> PretrainResult:
    return pretrain_slides(micro_slide_config(*overrides), bags, run, device="cpu", **how)


def record_of(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


def damage(bags: Path, slide_id: str) -> None:
    place = bags / f"{slide_id}.h5"
    data = bytearray(place.read_bytes())
    data[-1] ^= 4
    place.write_bytes(data)


def poison(bags: Path, slide_id: str) -> None:
    bag = striped_bag(slide_id, seed=99)
    bag.features[5, 3] = np.nan
    with pytest.MonkeyPatch.context() as patch:  # another program wrote it
        patch.setattr("anlage.bags.store.as_stored", lambda place, bag: bag)
        write_bag(bag_place(bags, slide_id), bag)


@pytest.fixture
def bags(tmp_path: Path) -> Path:
    return write_bags(tmp_path / "bags")


def test_damaged_and_nan_bags_are_left_out_before_the_first_step(
    bags: Path, tmp_path: Path
) -> None:
    """The run is that of the bags that are whole."""
    for slide_id in ("bad", "nan"):
        write_bag(bag_place(bags, slide_id), striped_bag(slide_id, seed=3))
    damage(bags, "bad")
    poison(bags, "nan")
    result = pretrain(bags, tmp_path / "run")
    assert result.is_finished
    assert [Path(error.path).stem for error in result.left_out] == ["bad", "nan"]
    assert "checksum" in str(result.left_out[0])
    assert "NaN" in str(result.left_out[1])
    record = record_of(tmp_path / "run")
    assert record["left_out"] == ["bad", "nan"]
    whole = write_bags(tmp_path / "whole")
    assert pretrain(whole, tmp_path / "other").left_out == ()
    assert_same_run(tmp_path / "run", tmp_path / "other", form=FORMAT)


@pytest.mark.parametrize("then", ["damaged", "removed", "whole"])
def test_bags_left_out_at_first_are_left_out_when_the_run_goes_on(
    bags: Path, tmp_path: Path, then: str
) -> None:
    straight = tmp_path / "straight"
    pretrain(write_bags(tmp_path / "whole"), straight)
    write_bag(bag_place(bags, "bad"), striped_bag("bad", seed=3))
    damage(bags, "bad")
    run = tmp_path / "run"
    with slides_stopped_after(3):
        pretrain(bags, run)
    (bags / "bad.h5").unlink()
    if then != "removed":
        write_bag(bag_place(bags, "bad"), striped_bag("bad", seed=3))
    if then == "damaged":
        damage(bags, "bad")
    result = pretrain(bags, run, resume=True)
    assert result.is_finished
    assert [Path(error.path).stem for error in result.left_out] == ["bad"] * (then != "removed")
    assert_same_run(straight, run, form=FORMAT)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lost", "how"),
    [
        *(("slides", "damaged"), ("slides", "removed")),
        *(("held_out", "damaged"), ("held_out", "removed"), ("other_slides", "damaged")),
    ],
)
def test_a_bag_lost_while_the_run_goes_on_costs_that_slide(
    bags: Path, tmp_path: Path, lost: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    table = SlideLabels.open(write_table(tmp_path / "slides.csv"))
    more, run = (
        ("watch.label=shifted", "epochs=6", "held_out.share=0.4", "held_out.most=2"),
        tmp_path / "run",
    )
    with slides_stopped_after(2):
        pretrain(bags, run, *more, table=table)
    record = record_of(run)
    slide_id = min(record[lost])
    if how == "damaged":
        damage(bags, slide_id)
    else:
        (bags / f"{slide_id}.h5").unlink()
    result = pretrain(bags, run, *more, table=table, resume=True)
    assert result.is_finished
    assert slide_id in caplog.text
    assert record_of(run) == record
    rows = metrics_of(run)
    assert len(rows) == result.steps
    assert "held_out_loss" in rows[-1]
    assert np.isfinite([row["loss"] for row in rows]).all()


def test_another_bag_in_the_place_of_one_is_still_refused(bags: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with slides_stopped_after(2):
        pretrain(bags, run)
    slide_id = min(record_of(run)["slides"])
    write_bag(bag_place(bags, slide_id), striped_bag(slide_id, seed=77))
    with pytest.raises(CheckpointError, match="needs the bags it began with"):
        pretrain(bags, run, resume=True)


def test_no_whole_bag_at_all_is_refused(tmp_path: Path) -> None:
    bags = write_bags(tmp_path / "bags", n_slides=3)
    for slide_id in BagSet.open(bags).slide_ids:
        damage(bags, slide_id)
    with pytest.raises(BagError, match="3 refused"):
        pretrain(bags, tmp_path / "run")
    assert not (tmp_path / "run").exists()
