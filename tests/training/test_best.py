"""The best encoder: kept whole, decided the same after a kill, and the end of patience."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from small_encoder import make_config, make_encoder

from anlage.encoders.folder import load_encoder, save_encoder
from anlage.training.best import BestEncoder, Standing, read_best, standing_of
from anlage.training.log import MetricsLog

PROBES = [0.5, 0.7, float("nan"), 0.7, 0.6, 0.9, 0.8]
EVERY = 10
CONFIG = make_config()


def run(run_dir: Path, *, first: int, until: int, patience: int | None = None) -> BestEncoder:
    """Look every ten steps, as a training loop does; returns after ``until`` finished steps."""
    run_dir.mkdir(exist_ok=True)
    best = BestEncoder(run_dir, metric="watch_knn", patience=patience, first_step=first)
    with MetricsLog(run_dir, first_step=first) as log:
        for step in range(first, until):
            done, metrics = step + 1, {"loss": 1.0}
            if done % EVERY == 0:
                value = PROBES[done // EVERY - 1]
                metrics["watch_knn"] = value
                model = make_encoder(seed=done).model
                best.consider(done, metrics, save=partial(save_encoder, model=model, config=CONFIG))
            log.write(step, metrics)
    return best


def kept_weights(run_dir: Path) -> torch.Tensor:
    return load_encoder(run_dir / "best").model.blocks[0].attn.qkv.weight


def test_the_best_is_kept_and_a_tie_keeps_the_earlier(tmp_path) -> None:
    best = run(tmp_path, first=0, until=50)
    assert best.standing == Standing(step=20, value=0.7, looks_since=3)
    wanted = {"format": "best/1", "step": 20, "metric": "watch_knn", "value": 0.7}
    assert read_best(tmp_path) == wanted
    assert torch.equal(
        kept_weights(tmp_path), make_encoder(seed=20).model.blocks[0].attn.qkv.weight
    )


@pytest.mark.parametrize("resumed", [0, 15, 20, 35, 55, 60, 69])
@pytest.mark.parametrize("killed", [60, 65, 70])
def test_killed_and_resumed_anywhere_ends_with_the_same_best(tmp_path, killed, resumed) -> None:
    resumed = min(resumed, killed)
    whole = run(tmp_path / "whole", first=0, until=70)
    run(tmp_path / "cut", first=0, until=killed)
    again = run(tmp_path / "cut", first=resumed, until=70)
    assert again.standing == whole.standing == Standing(step=60, value=0.9, looks_since=1)
    assert read_best(tmp_path / "cut") == read_best(tmp_path / "whole")
    assert torch.equal(kept_weights(tmp_path / "cut"), kept_weights(tmp_path / "whole"))
    lines = [(tmp_path / n / "metrics.jsonl").read_text() for n in ("whole", "cut")]
    assert lines[0] == lines[1]


def test_looks_that_will_be_done_again_do_not_count(tmp_path) -> None:
    run(tmp_path, first=0, until=60)
    best = BestEncoder(tmp_path, metric="watch_knn", patience=3, first_step=35)
    assert best.standing == Standing(step=20, value=0.7, looks_since=1)
    assert not best.is_patience_over
    assert read_best(tmp_path)["step"] == 60  # until the look at 60 comes again


def test_patience_is_over_and_still_is_after_a_resume(tmp_path) -> None:
    assert not run(tmp_path, first=0, until=40, patience=3).is_patience_over
    assert run(tmp_path, first=40, until=50, patience=3).is_patience_over
    assert BestEncoder(tmp_path, metric="watch_knn", patience=3, first_step=50).is_patience_over
    endless = BestEncoder(tmp_path, metric="watch_knn", patience=None, first_step=50)
    assert not endless.is_patience_over


def test_rows_without_the_probe_are_no_looks() -> None:
    rows = [{"step": 0}, {"step": 1, "watch_knn": None}, {"step": 2, "watch_linear": 1.0}]
    assert standing_of(rows, "watch_knn") == Standing(looks_since=1)


def test_nothing_is_kept_without_a_value(tmp_path) -> None:
    best = BestEncoder(tmp_path, metric="watch_knn", patience=1, first_step=0)
    encoder = make_encoder()
    nothing = {"watch_knn": float("nan")}
    save = partial(save_encoder, model=encoder.model, config=CONFIG)
    assert not best.consider(10, nothing, save=save)
    assert read_best(tmp_path) is None
    assert not (tmp_path / "best").exists()
    assert best.is_patience_over


def test_a_crash_between_encoder_and_record_is_mended_by_the_look_done_again(tmp_path) -> None:
    run(tmp_path, first=0, until=55)
    before = (tmp_path / "best.json").read_text()
    run(tmp_path, first=55, until=60)
    (tmp_path / "best.json").write_text(before)  # the encoder of 60 with the record of 20
    run(tmp_path, first=50, until=70)
    assert json.loads((tmp_path / "best.json").read_text())["step"] == 60
