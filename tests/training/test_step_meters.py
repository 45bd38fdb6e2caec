"""Rates of steps: counted FLOPs over the seconds of a step, without looks and checkpoints."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from anlage.models.flops import StepFlops, forward_flops, step_flops
from anlage.slides.catalogue import Catalogue
from anlage.training import tile_pretrain
from anlage.training.log import read_metrics
from anlage.training.tile_config import TilePretrainConfig
from anlage.training.tile_pretrain import pretrain_tiles
from micro_recipe import micro_config

PAUSE_S = 0.3
LATE = "last_stage={start: 0.5, global_px: 64, local_px: 24, source_px: 80}"
ANCHORED = "objective.gram={start: 0.5}"


def counted(config: TilePretrainConfig, *, global_px: int, local_px: int) -> StepFlops:
    """FLOPs of a step for each tile: two global views, half of them masked by 30 % on average."""
    return step_flops(
        config.model.model_dump(),
        cls_head=config.head.model_dump(),
        global_px=global_px,
        local_px=local_px,
        n_local=2,
        masked_patches=2 * 0.5 * 0.3 * (global_px // 8) ** 2,
    )


@pytest.mark.parametrize("extra", [(), (LATE,), (ANCHORED,)], ids=["plain", "last stage", "gram"])
def test_tflops_are_counted_flops_over_seconds(
    catalogue: Catalogue, tmp_path: Path, extra: tuple[str, ...]
) -> None:
    config = micro_config("steps=4", *extra)
    pretrain_tiles(config, catalogue, tmp_path, device="cpu")
    early = counted(config, global_px=32, local_px=16).total
    late = early
    if LATE in extra:
        late = counted(config, global_px=64, local_px=24).total
    if ANCHORED in extra:
        late += 2 * forward_flops(config.model.model_dump(), edge_px=32)
    assert (late > 1.05 * early) == bool(extra)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    seconds = [4 / row["tiles_per_s"] for row in rows]
    flops = [1e12 * row["tflops"] * took for row, took in zip(rows, seconds, strict=True)]
    assert flops == pytest.approx([4 * early] * 2 + [4 * late] * 2, rel=0.02)
    assert "mfu" not in rows[0]


@pytest.mark.parametrize("slow", ["look", "checkpoint"])
def test_a_slow_look_or_checkpoint_makes_no_step_slower(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    """Steps after the first, and the pauses between, do not overlap from its end to the end."""
    owner, name = {
        "look": (tile_pretrain.RunWatch, "after_step"),
        "checkpoint": (tile_pretrain, "save_run"),
    }[slow]
    act, ends = getattr(owner, name), []

    def paused(*given):
        ends.append(time.perf_counter())
        time.sleep(PAUSE_S)
        return act(*given)

    monkeypatch.setattr(owner, name, paused)
    each = ("steps=4", "checkpoint_every=1", "watch.every=1", "watch.pictures=false")
    pretrain_tiles(micro_config(*each), catalogue, tmp_path, device="cpu")
    rows = read_metrics(tmp_path / "metrics.jsonl")
    for rate in ("tiles_per_s", "tflops"):
        first = rows[0][rate] * (4 / rows[0]["tiles_per_s"])  # of one step, tiles or TFLOP
        in_steps = sum(first / row[rate] for row in rows[1:])
        assert in_steps + 3 * PAUSE_S < ends[-1] - ends[0]


@pytest.mark.gpu
def test_a_gpu_of_known_peak_tells_its_share(catalogue: Catalogue, tmp_path: Path) -> None:
    pretrain_tiles(micro_config("steps=3"), catalogue, tmp_path, device="cuda")
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert all(0 < row["mfu"] < 1 for row in rows)
