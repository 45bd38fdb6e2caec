"""Two ranks pretrain the slide encoder that one does, and stop together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from same_run import metrics_of, tensors_of
from slide_runs import micro_slide_config, write_bags, write_table
from two_ranks import run

from anlage.bags.slide_labels import SlideLabels
from anlage.encoders.slide_encoder import load_slide_encoder
from anlage.training.log import read_metrics
from anlage.training.slide_pretraining.pretrain import pretrain_slides
from anlage.training.slide_pretraining.state import FORMAT

PROGRAM = Path(__file__).parent / "slides_on_ranks.py"
PLAIN = (
    *("model.dropout=0", "model.stochastic_depth=0", "precision=fp32", "watch.label=shifted"),
    # Adam divides a gradient by its own size: a large epsilon keeps the last bits of gradients that
    # are truly zero (the bias of keys) from becoming whole steps.
    *("optimizer.warmup_epochs=0", "optimizer.epsilon=1e-2", "watch.keep_best=linear"),
)
TIMING = {"watch_linear"}  # its steps make much of last bits


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("data")
    return write_bags(folder / "bags"), write_table(folder / "slides.csv")


def on_ranks(
    data: tuple[Path, Path], run_dir: Path, *overrides: str, what: str = "run"
) -> list[str]:
    chosen = json.dumps([*PLAIN, *overrides])
    return run([str(PROGRAM), *map(str, data), str(run_dir), what, chosen], timeout_s=400)


@pytest.mark.slow
def test_two_ranks_train_the_same_encoder(data: tuple[Path, Path], tmp_path: Path) -> None:
    config, table = micro_slide_config(*PLAIN), SlideLabels.open(data[1])
    pretrain_slides(config, data[0], tmp_path / "one", device="cpu", table=table)
    on_ranks(data, tmp_path / "two", "accumulate=2")
    mine, theirs = (tensors_of(tmp_path / name, form=FORMAT) for name in ("two", "one"))
    assert mine.keys() == theirs.keys()
    moved = 0.0
    for name, wanted in theirs.items():
        if name.startswith("network"):
            torch.testing.assert_close(mine[name], wanted, rtol=1e-4, atol=2e-6, msg=name)
            moved = max(moved, float(wanted.abs().max()))
    assert moved > 0.1
    rows = zip(metrics_of(tmp_path / "two"), metrics_of(tmp_path / "one"), strict=True)
    for row, wanted_row in rows:
        assert row.keys() == wanted_row.keys()
        for metric in wanted_row.keys() - TIMING:
            assert row[metric] == pytest.approx(wanted_row[metric], rel=1e-4, abs=1e-6), metric
    encoder = load_slide_encoder(tmp_path / "two" / "encoder").network.state_dict()
    assert all(torch.equal(t, mine[f"network.encoder.{key}"]) for key, t in encoder.items())
    assert (tmp_path / "two" / "best").is_dir()

    copy = tmp_path / "copy"  # a run of two ranks goes on with one, from the checkpoint before
    shutil.copytree(tmp_path / "two", copy)
    last = sorted((copy / "checkpoints").glob("step-*.json"))[-1]
    last.unlink()
    shutil.rmtree(last.with_suffix(""))
    again = pretrain_slides(config, data[0], copy, resume=True, device="cpu", table=table)
    assert again.is_finished
    for name, tensor in tensors_of(copy, form=FORMAT).items():
        if name.startswith("network"):
            torch.testing.assert_close(tensor, theirs[name], rtol=1e-4, atol=2e-6, msg=name)
    record = json.loads((copy / "encoder" / "config.json").read_text())["provenance"]
    assert (record["ranks"], record["resumed"][0]["ranks"]) == (2, 1)


@pytest.mark.slow
def test_nan_on_one_rank_stops_both_before_the_weights(
    data: tuple[Path, Path], tmp_path: Path
) -> None:
    for said in on_ranks(
        data, tmp_path / "run", "held_out.share=0", "watch.every=null", what="poison"
    ):
        assert "the loss is not finite at step 2" in said
        assert "g=10" in said or "g=11" in said  # rank 1 has draws 10 and 11
        assert "g=8" not in said
        assert "no weight was changed" in said
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 2
