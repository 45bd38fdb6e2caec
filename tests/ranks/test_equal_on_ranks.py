"""One rank = two ranks: objectives, optimiser, stream, and whole runs under every engine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from same_run import metrics_of, tensors_of
from two_ranks import run

from anlage.encoders.folder import load_encoder
from anlage.slides.catalogue import Catalogue
from anlage.training.tile_pretrain import pretrain_tiles
from micro_recipe import micro_config

HERE = Path(__file__).parent
PLAIN = (
    *("steps=6", "checkpoint_every=3", "model.stochastic_depth=0", "precision=fp32"),
    # Adam divides a gradient by its own size: a large epsilon keeps the last bits of gradients that
    # are truly zero (the bias of keys) from becoming whole steps.
    *("optimizer.warmup=0", "optimizer.epsilon=1e-2"),
)


@pytest.mark.slow
def test_parts_of_a_step_are_those_of_one_process(with_a_slide_gone: Path, tmp_path: Path) -> None:
    said = run([str(HERE / "same_on_ranks.py"), str(with_a_slide_gone), str(tmp_path)])
    assert all("all equal" in text for text in said)
    lines = (tmp_path / "quarantine.jsonl").read_text().splitlines()
    assert sum("from_step" in line for line in lines) == 1


@pytest.fixture(scope="module")
def runs(catalogue: Catalogue, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run on one rank, and on two of them under every engine, in one folder each."""
    folder = tmp_path_factory.mktemp("runs")
    pretrain_tiles(micro_config(*PLAIN), catalogue, folder / "single", device="cpu")
    two = ("optimizer.kind=stable_adamw", "optimizer.clip_norm=null", "engine.recompute=full")
    pretrain_tiles(micro_config(*PLAIN, *two), catalogue, folder / "stable", device="cpu")
    plan = {
        "ddp": [],
        "fsdp2": ["engine.kind=fsdp2"],
        "hsdp": ["engine.kind=hsdp", "engine.shard_over=1"],
        "ddp-parts": ["accumulate=2"],
        "fsdp2-parts": ["engine.kind=fsdp2", "accumulate=2"],
        "stable-fsdp2": ["engine.kind=fsdp2", *two],
        "ddp-bf16": ["precision=bf16"],
        "fsdp2-bf16": ["precision=bf16", "engine.kind=fsdp2"],
    }
    described = json.dumps({name: [*PLAIN, *more] for name, more in plan.items()})
    run([str(HERE / "run_on_ranks.py"), str(catalogue.path), str(folder), described])
    return folder


@pytest.mark.parametrize(
    ("name", "oracle"),
    [
        *((name, "single") for name in ("ddp", "fsdp2", "hsdp", "ddp-parts", "fsdp2-parts")),
        ("stable-fsdp2", "stable"),
    ],
)
def test_two_ranks_train_the_same_model(runs: Path, name: str, oracle: str) -> None:
    """Tile stream, loss and weights."""
    mine, theirs = tensors_of(runs / name), tensors_of(runs / oracle)
    assert mine.keys() == theirs.keys()
    for key, wanted in theirs.items():
        if key.startswith(("student", "teacher", "centers")):
            torch.testing.assert_close(mine[key], wanted, rtol=1e-4, atol=2e-6, msg=key)
    for row, wanted_row in zip(metrics_of(runs / name), metrics_of(runs / oracle), strict=True):
        assert row.keys() == wanted_row.keys()
        for metric, value in wanted_row.items():
            assert row[metric] == pytest.approx(value, rel=1e-4, abs=1e-6), metric
    encoder = load_encoder(runs / name / "encoder").model.state_dict()  # put together from shards
    assert all(torch.equal(t, mine[f"teacher.encoder.{key}"]) for key, t in encoder.items())
    tiles = json.loads((runs / f"{name}.tiles.json").read_text())
    assert tiles == json.loads((runs / "ddp.tiles.json").read_text())
    assert len(tiles) == 24


def test_two_ranks_train_the_same_model_in_bf16(runs: Path) -> None:
    """Weights gathered in bf16 are apart from those of DDP by little of what bf16 makes of them."""
    sharded, ddp, exact = (
        {key: t for key, t in tensors_of(runs / name).items() if key.startswith("student")}
        for name in ("fsdp2-bf16", "ddp-bf16", "ddp")
    )
    noise, apart = (
        torch.cat([(one[key] - other[key]).flatten() for key in one]).norm()
        for one, other in ((ddp, exact), (sharded, ddp))
    )
    assert noise > 1e-4
    assert apart < 0.01 * noise


@pytest.mark.slow
def test_weights_gathered_in_bf16_give_the_same_gradients_to_the_bit() -> None:
    assert all("all equal" in text for text in run([str(HERE / "gathered_on_ranks.py")]))


def test_ranks_differ_from_one_where_the_stream_does(runs: Path, catalogue: Catalogue) -> None:
    """The tolerance above tells runs apart: another seed is far outside of it."""
    other = micro_config(*PLAIN, "seed=1")
    pretrain_tiles(other, catalogue, runs / "other", device="cpu")
    mine, theirs = tensors_of(runs / "other"), tensors_of(runs / "single")
    name = "student.encoder.blocks.0.attn.qkv.weight"
    assert (mine[name] - theirs[name]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_a_run_of_two_ranks_goes_on_with_one(
    runs: Path, catalogue: Catalogue, name: str, tmp_path: Path
) -> None:
    """From the checkpoint before the last, so that three steps are done by one rank."""
    copy = tmp_path / "run"
    shutil.copytree(runs / name, copy)
    last = copy / "checkpoints" / "step-00000006"
    shutil.rmtree(last)
    last.with_suffix(".json").unlink()
    config = micro_config(*PLAIN)
    assert pretrain_tiles(config, catalogue, copy, resume=True, device="cpu").is_finished
    mine, theirs = tensors_of(copy), tensors_of(runs / "single")
    for key, wanted in theirs.items():
        if key.startswith(("student", "teacher")):
            torch.testing.assert_close(mine[key], wanted, rtol=1e-4, atol=2e-6, msg=key)
    record = json.loads((copy / "encoder" / "config.json").read_text())["provenance"]
    assert record["ranks"] == 2
    assert record["resumed"][0]["ranks"] == 1
