"""The slide stage's loop: it resumes bit by bit, stops on NaN, and refuses what cannot work."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from same_run import assert_same_run, metrics_of, tensors_of
from slide_runs import (
    MICRO,
    before_slide_steps,
    micro_slide_config,
    slides_stopped_after,
    write_bags,
    write_table,
)
from small_disk import small_disk
from some_bags import make_bag

from anlage.bags.loader import BagSet
from anlage.bags.slide_labels import SlideLabels
from anlage.bags.store import bag_place, write_bag
from anlage.distributed import Ranks
from anlage.encoders.slide_encoder import load_slide_encoder
from anlage.errors import BagError, CheckpointError, RecipeError, TrainingError
from anlage.training.checkpoint import newest_checkpoint
from anlage.training.log import read_metrics
from anlage.training.run_saves import PretrainResult
from anlage.training.slide_pretraining import step as slide_step
from anlage.training.slide_pretraining.pretrain import pretrain_slides
from anlage.training.slide_pretraining.state import FORMAT

STEPS = 6  # 3 epochs of 8 bags, 4 a step; 2 of 10 are held out


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bags(tmp_path_factory.mktemp("bags"))


def pretrain(bags: Path, run: Path, *overrides: str, **how) -> PretrainResult:
    return pretrain_slides(micro_slide_config(*overrides), bags, run, device="cpu", **how)


@pytest.fixture(scope="module")
def straight(bags: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All steps without a stop."""
    run = tmp_path_factory.mktemp("straight") / "run"
    result = pretrain(bags, run)
    assert (result.steps, result.is_finished, result.ended_early) == (STEPS, True, False)
    return run


def same(one: Path, other: Path) -> None:
    assert_same_run(one, other, form=FORMAT)


def test_a_run_writes_what_it_promises(straight: Path, bags: Path) -> None:
    rows = read_metrics(straight / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(STEPS))
    expected = {
        *("loss", "tiles", "lr", "tiles_per_s", "data_wait_share"),
        *("gradient_norm_encoder", "gradient_norm_decoder"),
    }
    assert rows[0].keys() == {"step", *expected}
    looked = {"held_out_loss", "held_out_mean_floor", "held_out_copy_floor"}
    assert [row["step"] for row in rows if looked <= row.keys()] == [1, 3, 5]
    record = json.loads((straight / "run.json").read_text())
    assert len(record["slides"]) == 8
    assert len(record["held_out"]) == 2
    assert not record["slides"].keys() & set(record["held_out"])
    facts = BagSet.open(bags).facts
    assert all(facts[s].content_sha256 == sha for s, sha in record["slides"].items())
    assert record["patients"] == sorted(record["slides"])  # nobody told of other ones
    assert record["n_without_patient"] == 8
    assert (record["grid_um"], record["tile_encoder"]["name"]) == (128.0, "anlage-tiny")


def test_the_encoder_is_the_runs_and_embeds_its_bags(straight: Path, bags: Path) -> None:
    encoder = load_slide_encoder(straight / "encoder")
    assert encoder.config.provenance["step"] == STEPS
    assert encoder.config.provenance["slides"]
    assert (encoder.config.grid_um, encoder.config.tile_encoder.width) == (128.0, 12)
    held = tensors_of(straight, form=FORMAT)
    for name, tensor in encoder.network.state_dict().items():
        assert torch.equal(tensor, held[f"network.encoder.{name}"]), name
    loaded = BagSet.open(bags).read("s0")
    cells = torch.from_numpy(np.floor((loaded.corner_L2 + 1) * 0.2528 / 128.0).astype(np.int64))
    embedded = encoder.embed(loaded.features_LD, cells, [len(cells)])
    assert embedded.shape == (1, 16)
    assert embedded.isfinite().all()


def test_the_same_seed_gives_the_same_run_and_another_seed_another(
    straight: Path, bags: Path, tmp_path: Path
) -> None:
    """Whatever the threads, and the caller's random numbers, which stay as they are."""
    torch.manual_seed(77)
    before = torch.get_rng_state()
    pretrain(bags, tmp_path / "again", threads=1)
    assert torch.equal(torch.get_rng_state(), before)
    same(straight, tmp_path / "again")
    pretrain(bags, tmp_path / "other", "seed=1")
    assert metrics_of(tmp_path / "other") != metrics_of(straight)


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_a_signal_stops_after_a_step_and_resume_is_bit_identical(
    straight: Path, bags: Path, tmp_path: Path, stop: int
) -> None:
    run = tmp_path / "run"
    with slides_stopped_after(stop):
        stopped = pretrain(bags, run)
    assert (stopped.steps, stopped.is_finished) == (stop, False)
    with pytest.raises(CheckpointError, match="--resume"):
        pretrain(bags, run)
    assert pretrain(bags, run, resume=True).is_finished
    same(straight, run)


@pytest.mark.slow
def test_kill_nine_between_checkpoints_and_resume_is_bit_identical(
    straight: Path, bags: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    program = (
        "import sys, torch, time; torch.set_num_threads(1)\n"
        "from anlage.recipe import load_recipe\n"
        "from anlage.training.slide_pretraining import pretrain as slide_pretrain\n"
        "from anlage.training.slide_pretraining.config import SlidePretrainConfig\n"
        "take = slide_pretrain.slide_step\n"
        "def slow(training, parts, **how):\n"
        "    time.sleep(0.5 if training.step > 2 else 0.0)\n"
        "    return take(training, parts, **how)\n"
        "slide_pretrain.slide_step = slow\n"
        "config = load_recipe('tiny-slide', SlidePretrainConfig, overrides=sys.argv[3:])\n"
        "slide_pretrain.pretrain_slides(config, sys.argv[1], sys.argv[2], device='cpu')\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(bags), str(run), *MICRO])
    log, deadline = run / "metrics.jsonl", time.monotonic() + 300
    while not log.exists() or log.read_text().count("\n") < 5:
        assert time.monotonic() < deadline, "the run never reached step 5"
        assert child.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    newest = newest_checkpoint(run / "checkpoints", form=FORMAT)
    assert newest is not None
    assert newest.step == 4
    assert pretrain(bags, run, resume=True).is_finished
    same(straight, run)


def test_a_full_disk_stops_the_run_cleanly_and_it_goes_on_with_more_room(
    straight: Path, bags: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "disk", size_kib=4096) as disk:
        run, ballast = disk / "run", disk / "ballast"
        with monkeypatch.context() as patch:

            def fill(training, _) -> None:
                if training.step == 3:
                    while not (run / "checkpoints" / "step-00000002.json").exists():
                        time.sleep(0.01)
                    ballast.write_bytes(bytes(shutil.disk_usage(disk).free - 8192))

            before_slide_steps(patch, fill)
            with pytest.raises(
                TrainingError, match="the disk is full after step [3-6]; .*--resume"
            ):
                pretrain(bags, run)
        ballast.unlink()
        assert load_slide_encoder(run / "encoder").config.provenance["step"] == 2
        assert pretrain(bags, run, resume=True).is_finished
        same(straight, run)


def test_nan_stops_before_the_weights_and_names_the_slide(
    bags: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, object] = {}

    def poison(training, parts) -> None:
        seen["network"] = training.network
        seen["before"] = [p.clone() for p in training.network.parameters()]
        if training.step == 2:
            bag = parts[1]  # bags 2 and 3 of the step
            seen["guilty"] = f"{bag.slide_ids[1]} (g={bag.numbers[1]})"
            seen["fine"] = f"(g={bag.numbers[0]})"
            bag.features_TI[-1, 3] = float("nan")

    before_slide_steps(monkeypatch, poison)
    with pytest.raises(TrainingError, match="the loss is not finite at step 2") as error:
        pretrain(bags, tmp_path / "run", "accumulate=2")
    told = str(error.value)
    assert "no weight was changed" in told
    assert "First: tile embeddings of part 1: 1 NaN" in told
    assert str(seen["guilty"]) in told
    assert str(seen["fine"]) not in told
    pairs = zip(seen["network"].parameters(), seen["before"], strict=True)
    assert all(torch.equal(now, before) for now, before in pairs)
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 2


@pytest.mark.parametrize("part", [0, 1])
def test_a_gradient_that_is_not_finite_is_traced_in_any_part(
    bags: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    """Parts are drawn again for it, as none is kept."""
    seen: list[int] = []
    measure = slide_step.hidden_error

    def torn(predicted_MI, masked):
        error_B = measure(predicted_MI, masked)
        seen.append(masked.numbers[0])
        if masked.numbers[0] == 8 + 2 * part:  # the third step
            error_B.register_hook(lambda grad: grad * float("inf"))
        return error_B

    monkeypatch.setattr(slide_step, "hidden_error", torn)
    with pytest.raises(TrainingError, match=r"the gradient of the encoder and decoder") as error:
        pretrain(bags, tmp_path / "run", "accumulate=2", "watch.every=null", "held_out.share=0")
    assert "(the loss is)" in str(error.value)
    assert "First: " in str(error.value)
    assert seen[-4:] == [8, 10, 8, 10]


def test_resume_with_another_recipe_or_other_bags_is_refused(
    straight: Path, bags: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"mask_ratio was 0.75, is now 0.5"):
        pretrain(bags, straight, "mask_ratio=0.5", resume=True)
    other = write_bags(tmp_path / "other", n_slides=11)
    with pytest.raises(CheckpointError, match="needs the bags it began with"):
        pretrain(other, straight, resume=True)


def test_another_way_to_compute_the_same_goes_on(
    straight: Path, bags: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with slides_stopped_after(3):
        pretrain(bags, run)
    more = ("accumulate=2", "engine.recompute=true")
    assert pretrain(bags, run, *more, resume=True).is_finished


def test_a_run_of_another_stage_is_refused(straight: Path, bags: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    description = run / "checkpoints" / "step-00000006.json"
    told = json.loads(description.read_text())
    description.write_text(json.dumps({**told, "format": "tile-checkpoint/2"}))
    with pytest.raises(CheckpointError, match="Another stage wrote it"):
        pretrain(bags, run, resume=True)
    shutil.rmtree(run / "checkpoints")
    record = json.loads((run / "run.json").read_text())
    del record["stage"]
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="a run of another stage"):
        pretrain(bags, run, resume=True)


def test_a_finished_run_is_left_as_it_is_and_gets_its_encoder(
    straight: Path, bags: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(straight, run, ignore=shutil.ignore_patterns("encoder"))
    assert pretrain(bags, run, resume=True).is_finished
    same(straight, run)
    made, meant = (load_slide_encoder(folder / "encoder") for folder in (run, straight))
    assert made.fingerprint == meant.fingerprint


def test_bags_of_another_encoder_end_the_run_before_it_begins(tmp_path: Path) -> None:
    folder = write_bags(tmp_path / "bags", n_slides=3)
    other = make_bag("other", 20, encoder_fingerprint="f" * 64, tile_px=256, stride_px=256)
    write_bag(bag_place(folder, "other"), other)
    with pytest.raises(BagError, match="encoder"):
        pretrain(folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_bags_of_one_tile_are_left_out_and_counted(tmp_path: Path) -> None:
    folder = write_bags(tmp_path / "bags", n_slides=5)
    write_bag(bag_place(folder, "lone"), make_bag("lone", 1, tile_px=256, stride_px=256))
    pretrain(folder, tmp_path / "run", "epochs=2", "held_out.share=0", "watch.every=null")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["n_too_small"] == 1
    assert "lone" not in record["slides"]


def test_a_batch_that_ranks_cannot_share_is_refused(bags: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="batch_size=4 needs to be a multiple of ranks"):
        pretrain(bags, tmp_path / "run", ranks=Ranks(rank=0, world_size=3))


def test_labels_are_probed_and_choose_the_best_encoder(bags: Path, tmp_path: Path) -> None:
    table = SlideLabels.open(write_table(tmp_path / "slides.csv"))
    run = tmp_path / "run"
    result = pretrain(bags, run, "watch.label=shifted", "epochs=6", table=table)
    rows = [row for row in read_metrics(run / "metrics.jsonl") if "watch_knn" in row]
    assert len(rows) == result.steps // 2 + result.steps % 2
    assert all(0 <= row["watch_knn"] <= 1 and "watch_rankme" in row for row in rows)
    best = json.loads((run / "best.json").read_text())
    assert best["value"] == max(row["watch_knn"] for row in rows)
    chosen = load_slide_encoder(run / "best").config.provenance
    assert chosen["step"] == best["step"]
    assert "/" not in chosen["watched"]["source"]
    assert chosen["watched"]["cases"] == ["p0", "p1", "p2", "p3", "p4", "p5"]
    record = json.loads((run / "run.json").read_text())
    held = {table.patient_of[slide] for slide in record["held_out"]}
    assert held.isdisjoint(record["patients"])
    assert record["n_without_patient"] == 0


def test_a_label_without_its_table_is_refused(bags: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="needs the table that has it. Name it with --watch"):
        pretrain(bags, tmp_path / "run", "watch.label=shifted")
    assert not (tmp_path / "run" / "run.json").exists()


def test_other_labels_are_refused_on_resume(bags: Path, tmp_path: Path) -> None:
    path, run = write_table(tmp_path / "slides.csv"), tmp_path / "run"
    with slides_stopped_after(2):
        pretrain(bags, run, "watch.label=shifted", table=SlideLabels.open(path))
    path.write_text(path.read_text().replace("s8,p4,no", "s8,p4,yes"))
    with pytest.raises(CheckpointError, match="needs the watched slides it began with"):
        pretrain(bags, run, "watch.label=shifted", table=SlideLabels.open(path), resume=True)


def test_patience_ends_a_run_and_resume_leaves_it_ended(bags: Path, tmp_path: Path) -> None:
    table = SlideLabels.open(write_table(tmp_path / "slides.csv"))
    more = ("watch.label=shifted", "epochs=30", "watch.patience=2", "optimizer.peak_lr=1e-6")
    run = tmp_path / "run"
    result = pretrain(bags, run, *more, table=table)
    assert result.is_finished
    assert result.ended_early
    rows = len(read_metrics(run / "metrics.jsonl"))
    assert rows == result.steps < 50
    again = pretrain(bags, run, *more, table=table, resume=True)
    assert (again.steps, again.ended_early) == (result.steps, True)


def test_patience_without_labels_is_refused(bags: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"watch.patience=2 needs labelled slides"):
        pretrain(bags, tmp_path / "run", "watch.patience=2")


@pytest.mark.parametrize("mode", ["zero", "masked"])
def test_every_switch_of_the_recipe_trains(bags: Path, tmp_path: Path, mode: str) -> None:
    more = (
        *("epochs=2", f"model.pad={mode}", "bags.max_tiles=null", "bags.grid_um=256"),
        *("encoder.pooling=mean", "precision=bf16", "engine.recompute=true", "held_out.share=0"),
    )
    if mode == "zero":
        more = (*more, "model.head_phase=paper", "views.crop=1", "optimizer.clip_norm=null")
    assert pretrain(bags, tmp_path / "run", *more).is_finished
    assert load_slide_encoder(tmp_path / "run" / "encoder").config.pooling == "mean"
    assert "held_out_loss" not in read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_on_cuda_starts_where_the_one_on_the_cpu_does(
    bags: Path, tmp_path: Path, precision: str
) -> None:
    """The first loss is the CPU's: same bags, windows, masks and weights."""
    more = (f"precision={precision}", "model.dropout=0", "model.stochastic_depth=0")
    pretrain(bags, tmp_path / "cpu", *more)
    config = micro_slide_config(*more)
    assert pretrain_slides(config, bags, tmp_path / "cuda", device="cuda").is_finished
    one, other = metrics_of(tmp_path / "cpu")[0], metrics_of(tmp_path / "cuda")[0]
    assert other["loss"] == pytest.approx(one["loss"], rel=1e-3 if precision == "fp32" else 3e-2)
