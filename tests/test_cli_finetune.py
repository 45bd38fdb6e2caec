"""The command finetune: what it prints, writes and ends with."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from marked_bags import MarkedSlides, mark_of_class, two_classes, write_marked
from typer.testing import CliRunner, Result

from anlage.cli import app

POOLING = "model.pooling={kind: abmil, width: 16, hidden: 8}"
QUICK = ("epochs=2", "folds.n=2", "resamples=50", "precision=fp32", POOLING)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> MarkedSlides:
    rows = two_classes(12)
    return write_marked(tmp_path_factory.mktemp("marked"), rows, mark_of_class)


def finetune(slides: MarkedSlides, *more: str) -> Result:
    changes = [part for change in QUICK for part in ("--set", change)]
    given = ["--bags", str(slides.bags), "--labels", str(slides.labels), *changes, *more]
    log = logging.getLogger("anlage")
    handlers, level = log.handlers, log.level
    told = CliRunner().invoke(app, ["finetune", *given])
    for handler in log.handlers:
        if handler not in handlers:
            handler.close()
    log.handlers, log.level = handlers, level
    return told


def test_a_run_says_what_it_found_and_is_not_begun_twice(slides, tmp_path) -> None:
    run = tmp_path / "run"
    told = finetune(slides, "--run", str(run))
    assert told.exit_code == 0, told.output
    assert "binary: label\n12 slides of 12 patients (6 mutated, 6 wild); 2 folds\n" in told.output
    assert "auroc, model: " in told.output
    assert "12 patients, unreliable" in told.output
    assert f"result: {run / 'result.json'}" in told.output
    assert json.loads((run / "result.json").read_text())["format"] == "finetune/1"
    again = finetune(slides, "--run", str(run))
    assert "holds a run already" in str(again.exception)
    assert finetune(slides, "--run", str(run), "--resume").exit_code == 0


def test_a_dry_run_tells_of_folds_and_writes_nothing(slides, tmp_path) -> None:
    told = finetune(slides, "--dry-run", "--run", str(tmp_path / "run"))
    assert told.exit_code == 0, told.output
    assert "slides: 12 of 12 patients; bags of 6 to 10 tiles, 8 wide" in told.output
    assert "fold 1: train " in told.output
    assert "(3 mutated, 3 wild)" in told.output
    assert list(tmp_path.iterdir()) == []


def test_slides_without_a_bag_end_with_3(slides, tmp_path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text(slides.labels.read_text() + "lost,patient 9,wild\n")
    told = finetune(MarkedSlides(slides.bags, labels), "--run", str(tmp_path / "run"))
    assert told.exit_code == 3
    assert "refused: lost: has no bag" in told.output
    assert json.loads((tmp_path / "run/result.json").read_text())["refused"] == [
        {"slide_id": "lost", "reason": "has no bag"}
    ]


def test_a_run_needs_its_folder(slides) -> None:
    told = finetune(slides)
    assert told.exit_code == 2
    assert "needs --run" in told.output


def test_a_slide_encoder_that_is_not_there_is_named(slides, tmp_path) -> None:
    told = finetune(slides, "--run", str(tmp_path / "run"), "--slide-encoder", "nowhere")
    assert told.exit_code == 1
    assert "nowhere: no such slide encoder folder or name" in str(told.exception)
    assert not Path(tmp_path / "run/run.json").exists()


def test_splits_of_a_file_are_taken(slides, tmp_path) -> None:
    splits = tmp_path / "splits.csv"
    rows = [f"patient {n:03d},{('train', 'test', 'val')[n % 3]}" for n in range(12)]
    splits.write_text("patient_id,split\n" + "\n".join(rows) + "\n")
    told = finetune(slides, "--run", str(tmp_path / "run"), "--splits", str(splits))
    assert told.exit_code == 0, told.output
    assert "; 1 folds" in told.output or "; 1 fold" in told.output
