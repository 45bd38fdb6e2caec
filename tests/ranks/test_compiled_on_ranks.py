"""Compiled networks on two ranks: what eager ones learn on one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from same_run import metrics_of, tensors_of
from two_ranks import run

from anlage.slides.catalogue import Catalogue
from anlage.training.tile_pretrain import pretrain_tiles
from micro_recipe import micro_config

PLAIN = (
    *("steps=3", "model.stochastic_depth=0", "precision=fp32"),
    *("optimizer.warmup=0", "optimizer.epsilon=1e-2"),  # see test_equal_on_ranks.py
)
ENGINES = {"ddp": ("engine.recompute=selective",), "fsdp2": ("engine.kind=fsdp2",)}


@pytest.mark.slow
def test_compiled_networks_learn_on_two_ranks_what_eager_ones_learn_on_one(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    """Blocks and heads, whose weights FSDP2 gathers for each pass."""
    pretrain_tiles(micro_config(*PLAIN), catalogue, tmp_path / "single", device="cpu")
    plan = {name: [*PLAIN, *more, "engine.compile=blocks"] for name, more in ENGINES.items()}
    script = str(Path(__file__).parent / "run_on_ranks.py")
    run([script, str(catalogue.path), str(tmp_path), json.dumps(plan)], timeout_s=300)
    theirs = tensors_of(tmp_path / "single")
    for name in ENGINES:
        mine = tensors_of(tmp_path / name)
        assert mine.keys() == theirs.keys()
        for key, wanted in theirs.items():
            if key.startswith(("student", "teacher")):
                torch.testing.assert_close(mine[key], wanted, rtol=1e-4, atol=2e-6, msg=key)
        rows = zip(metrics_of(tmp_path / name), metrics_of(tmp_path / "single"), strict=True)
        for here, there in rows:
            assert here == pytest.approx(there, rel=1e-4, abs=1e-6)
