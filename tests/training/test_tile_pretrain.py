"""The training loop: it learns, resumes bit by bit, stops on NaN, and refuses what cannot work."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from anlage.encoders.folder import load_encoder
from anlage.errors import CatalogueError, CheckpointError, TrainingError
from anlage.slides.catalogue import Catalogue
from anlage.training import passes, step_views, tile_pretrain
from anlage.training.checkpoint import newest_checkpoint
from anlage.training.log import read_metrics
from anlage.training.replay import load_replay
from anlage.training.tile_pretrain import pretrain_tiles
from micro_recipe import MICRO, micro_config

TIMING = {"tiles_per_s", "data_wait_share", "tflops", "mfu"}


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint, flattened to its dotted name."""
    saved = newest_checkpoint(run / "checkpoints")
    assert saved is not None
    flat: dict[str, torch.Tensor] = {}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, torch.Tensor):
            flat[prefix] = value
        elif isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}", inner)

    walk("", saved.read_whole())
    return flat


def metrics(run: Path) -> list[dict[str, float]]:
    return [
        {k: v for k, v in row.items() if k not in TIMING}
        for row in read_metrics(run / "metrics.jsonl")
    ]


def assert_same_run(one: Path, other: Path) -> None:
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    assert len(mine) > 50
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name
    assert metrics(one) == metrics(other)


@pytest.fixture(scope="module")
def straight(catalogue: Catalogue, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten steps without a stop."""
    run = tmp_path_factory.mktemp("straight") / "run"
    assert pretrain_tiles(micro_config("steps=10"), catalogue, run, device="cpu").is_finished
    return run


def test_a_run_writes_what_it_promises(straight: Path, catalogue: Catalogue) -> None:
    rows = read_metrics(straight / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(10))
    expected = {
        *("loss", "loss_dino", "loss_ibot", "loss_kde", "lr", "tiles_per_s", "data_wait_share"),
        *("gradient_norm_encoder", "gradient_norm_head", "teacher_entropy", "rankme"),
        "prototype_usage",
    }
    assert expected <= rows[0].keys()
    assert all(np.isfinite(row["loss"]) for row in rows)
    record = json.loads((straight / "run.json").read_text())
    assert record["config"]["steps"] == 10
    assert record["catalogue"] == catalogue.select(split="train").fingerprint
    assert record["splits"] == ["train"]
    assert "erosion" not in record["patients"]
    assert len(record["slides"]) == 3
    encoder = load_encoder(straight / "encoder")
    assert encoder.config.provenance["step"] == 10
    assert encoder.config.provenance["slides"] == record["slides"]


def test_the_encoder_is_the_teacher(straight: Path) -> None:
    encoder = load_encoder(straight / "encoder")
    teacher = {
        name.removeprefix(".teacher.encoder."): tensor
        for name, tensor in weights(straight).items()
        if name.startswith(".teacher.encoder.")
    }
    state = encoder.model.state_dict()
    assert state.keys() == teacher.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in teacher.items())


def test_the_same_seed_gives_the_same_run_and_another_seed_another(
    straight: Path, catalogue: Catalogue, tmp_path: Path
) -> None:
    config = micro_config("steps=10")
    pretrain_tiles(config, catalogue, tmp_path / "again", device="cpu", threads=1)
    assert_same_run(straight, tmp_path / "again")
    other = micro_config("steps=10", "seed=1")
    pretrain_tiles(other, catalogue, tmp_path / "other", device="cpu")
    assert metrics(tmp_path / "other") != metrics(straight)


def test_training_leaves_the_callers_random_numbers_alone(
    straight: Path, catalogue: Catalogue, tmp_path: Path
) -> None:
    """Nor do they change it: stochastic depth draws from a generator of its own."""
    torch.manual_seed(77)
    before = torch.get_rng_state()
    pretrain_tiles(micro_config("steps=10"), catalogue, tmp_path / "run", device="cpu")
    assert torch.equal(torch.get_rng_state(), before)
    assert_same_run(straight, tmp_path / "run")


def test_a_signal_stops_after_a_step_and_resume_is_bit_identical(
    straight: Path, catalogue: Catalogue, tmp_path: Path
) -> None:
    run, config = tmp_path / "run", micro_config("steps=10")

    def interrupt() -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            path = run / "metrics.jsonl"
            if path.exists() and path.read_text().count("\n") >= 3:
                os.kill(os.getpid(), signal.SIGINT)
                return
            time.sleep(0.001)

    killer = threading.Thread(target=interrupt)
    killer.start()
    stopped = pretrain_tiles(config, catalogue, run, device="cpu")
    killer.join()
    assert not stopped.is_finished
    assert 3 <= stopped.steps < 10
    with pytest.raises(CheckpointError, match="--resume"):
        pretrain_tiles(config, catalogue, run, device="cpu")
    assert pretrain_tiles(config, catalogue, run, resume=True, device="cpu").is_finished
    assert_same_run(straight, run)


@pytest.mark.slow
def test_kill_nine_between_checkpoints_and_resume_is_bit_identical(
    straight: Path, catalogue: Catalogue, tmp_path: Path
) -> None:
    """10 steps straight equal 5 + kill -9 (at step 7 or later) + the rest."""
    run = tmp_path / "run"
    program = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from anlage.recipe import load_recipe\n"
        "from anlage.training.tile_config import TilePretrainConfig\n"
        "from anlage.training import tile_pretrain\n"
        "launch = tile_pretrain.launch_step\n"
        "def slow(training, batch, **how):\n"
        "    import time; time.sleep(0.3 if training.step > 5 else 0.0)\n"
        "    return launch(training, batch, **how)\n"
        "tile_pretrain.launch_step = slow\n"
        "config = load_recipe('tiny', TilePretrainConfig, overrides=sys.argv[3:])\n"
        "tile_pretrain.pretrain_tiles(config, sys.argv[1], sys.argv[2], device='cpu')\n"
    )
    arguments = [str(catalogue.path), str(run), *MICRO, "steps=10"]
    child = subprocess.Popen([sys.executable, "-c", program, *arguments])
    log, deadline = run / "metrics.jsonl", time.monotonic() + 600
    while not log.exists() or log.read_text().count("\n") < 7:
        assert time.monotonic() < deadline, "the run never reached step 7"
        assert child.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    newest = newest_checkpoint(run / "checkpoints")
    assert newest is not None
    assert newest.step == 5
    pretrain_tiles(micro_config("steps=10"), catalogue, run, resume=True, device="cpu")
    assert_same_run(straight, run)


def test_metrics_are_on_disk_before_the_checkpoint_of_their_steps_is_there(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a machine that loses its power leaves a checkpoint whose run lacks rows."""
    put, synced = os.fsync, []

    def fsync(handle: int) -> None:
        file = Path(f"/proc/self/fd/{handle}").readlink()
        synced.append((file.name, file.read_text() if file.suffix == ".jsonl" else ""))
        put(handle)

    run = tmp_path / "run"
    monkeypatch.setattr(os, "fsync", fsync)
    pretrain_tiles(micro_config("steps=5", "checkpoint_every=2"), catalogue, run, device="cpu")
    names = [name for name, _ in synced]
    begun = next(i for i, name in enumerate(names) if name.startswith(".metrics.jsonl."))
    assert names[begun + 1] == "run"  # the file's name itself
    for step in (2, 4, 5):
        described = next(i for i, n in enumerate(names) if n.startswith(f".step-{step:08d}.json."))
        rows = [text for name, text in synced[:described] if name == "metrics.jsonl"]
        assert rows[-1].count("\n") >= step
        assert rows[-1].endswith("\n")


def test_a_run_has_one_writer(straight: Path, catalogue: Catalogue, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    program = (
        "import sys, time\n"
        "from anlage.folder_lock import lock_folder\n"
        "with lock_folder(sys.argv[1], held=RuntimeError()):\n"
        "    print('locked', flush=True)\n"
        "    time.sleep(60)\n"
    )
    first = subprocess.Popen([sys.executable, "-c", program, str(run)], stdout=subprocess.PIPE)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"locked\n"
        with pytest.raises(CheckpointError, match="another process is training in this folder"):
            pretrain_tiles(micro_config("steps=10"), catalogue, run, resume=True, device="cpu")
        assert {path: path.read_bytes() for path in before} == before
        first.kill()
    assert pretrain_tiles(micro_config("steps=10"), catalogue, run, resume=True).is_finished


def test_nan_stops_before_the_weights_and_names_the_tile(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One tile whose pixels become NaN: the third of the third batch."""
    cut = step_views.views
    seen: dict[str, object] = {}

    def poisoned(pixels, g, *, spec, seed):
        made = cut(pixels, g, spec=spec, seed=seed)
        if int(g[0]) == 8:
            made.local_crops.view(spec.n_local, len(g), 3, 16, 16)[:, 2] = float("nan")
        return made

    launch = tile_pretrain.launch_step

    def recorded(training, batch, *, wants_stop):
        seen["before"] = {n: p.clone() for n, p in training.student.named_parameters()}
        seen["training"], seen["batch"] = training, batch
        return launch(training, batch, wants_stop=wants_stop)

    monkeypatch.setattr(step_views, "views", poisoned)
    monkeypatch.setattr(tile_pretrain, "launch_step", recorded)
    with pytest.raises(TrainingError, match="not finite at step 2") as error:
        pretrain_tiles(micro_config("steps=5"), catalogue, tmp_path / "run", device="cpu")
    message = str(error.value)
    guilty = seen["batch"].requests[2]
    assert f"{guilty.slide_id} at ({guilty.x}, {guilty.y})" in message
    assert "g=10" in message
    assert "g=8" not in message.replace("g=10", "")
    assert "dino=nan" in message
    assert "First: local views: " in message
    replay = load_replay(tmp_path / "run" / "non_finite" / "step-00000002")
    assert torch.equal(replay.tensors["pixels"], seen["batch"].pixels)
    assert replay.step == 2
    assert replay.state["student"].keys() == seen["training"].student.state_dict().keys()
    for name, parameter in seen["training"].student.named_parameters():
        assert torch.equal(parameter, seen["before"][name]), name
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 2


def test_embeddings_that_are_all_zero_are_told_and_do_not_end_the_run(
    catalogue: Catalogue,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A collapsed teacher is what RankMe is logged for."""
    taught = passes.teach

    def collapsed(*args, **settings):
        lesson = taught(*args, **settings)
        return replace(lesson, embedding_BD=torch.zeros_like(lesson.embedding_BD))

    monkeypatch.setattr(passes, "teach", collapsed)
    result = pretrain_tiles(micro_config("steps=2"), catalogue, tmp_path / "run", device="cpu")
    assert result.is_finished
    assert [row["rankme"] for row in metrics(tmp_path / "run")] == [0, 0]
    assert "the teacher's embeddings are all zero at step 0" in caplog.text


def test_resume_with_another_recipe_or_catalogue_is_refused(
    straight: Path, catalogue: Catalogue
) -> None:
    with pytest.raises(CheckpointError, match=r"head.n_prototypes was 32, is now 64"):
        pretrain_tiles(
            micro_config("steps=10", "head.n_prototypes=64"), catalogue, straight, resume=True
        )
    with pytest.raises(CheckpointError, match=r"tiles.split was 'train', is now None"):
        pretrain_tiles(
            micro_config("steps=10", "tiles.split=null"), catalogue, straight, resume=True
        )


def test_a_run_that_failed_before_its_first_step_goes_on_with_a_corrected_recipe(
    straight: Path, catalogue: Catalogue, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It began with nothing, so its folder is not bound to the recipe that failed."""
    run, wrong = tmp_path / "run", micro_config("steps=10", "tiles.magnifications={0.01: 1.0}")
    with pytest.raises(TrainingError, match="needs slides that give 48 px tiles at 0.01 mpp"):
        pretrain_tiles(wrong, catalogue, run, device="cpu")
    with pytest.raises(CheckpointError, match="--resume"):
        pretrain_tiles(micro_config("steps=10"), catalogue, run, device="cpu")
    pretrain_tiles(micro_config("steps=10"), catalogue, run, resume=True, device="cpu")
    assert "did no step; its run.json is replaced" in caplog.text
    assert json.loads((run / "run.json").read_text()) == json.loads(
        (straight / "run.json").read_text()
    )
    assert_same_run(straight, run)


@pytest.mark.parametrize("left", ["metrics.jsonl", "checkpoints"])
def test_a_run_with_a_step_or_a_checkpoint_keeps_its_record(
    straight: Path, catalogue: Catalogue, tmp_path: Path, left: str
) -> None:
    run = tmp_path / "run"
    others = {"metrics.jsonl", "checkpoints"} - {left}
    shutil.copytree(straight, run, ignore=shutil.ignore_patterns(*others))
    with pytest.raises(CheckpointError, match="steps was 10, is now 12"):
        pretrain_tiles(micro_config("steps=12"), catalogue, run, resume=True, device="cpu")


def test_no_slide_of_the_split_is_refused_before_anything_is_written(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    config = micro_config("steps=1", "tiles.split=validation")
    with pytest.raises(CatalogueError, match="split='validation'"):
        pretrain_tiles(config, catalogue, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_left_as_it_is(
    straight: Path, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a later version: the encoder keeps saying what trained it."""
    before = weights(straight)
    made_by = load_encoder(straight / "encoder").config.provenance
    monkeypatch.setattr("anlage.training.run_record.git_commit", lambda: "f" * 40)
    result = pretrain_tiles(micro_config("steps=10"), catalogue, straight, resume=True)
    assert result.is_finished
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(straight).items())
    assert load_encoder(straight / "encoder").config.provenance == made_by


def test_a_run_killed_between_its_last_checkpoint_and_its_encoder_gets_it_on_resume(
    straight: Path, catalogue: Catalogue, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(straight, run, ignore=shutil.ignore_patterns("encoder"))
    assert pretrain_tiles(micro_config("steps=10"), catalogue, run, resume=True).is_finished
    made, meant = load_encoder(run / "encoder"), load_encoder(straight / "encoder")
    assert made.fingerprint == meant.fingerprint


@pytest.mark.parametrize(
    "overrides",
    [
        ("objective.targets=centering", "objective.spread=koleo"),
        ("objective.spread=none", "views.n_local=0", "objective.masked_share=0"),
        ("views.mode=extended_context", "tiles.magnifications={1.0: 1.0, 1.6: 3.0}"),
        (
            *("tiles.magnifications={low: 1.0, high: 1.6}", "encoder.mpp=1.2"),
            *("tiles.per_region=4", "tiles.balance={patient_id: 0.5}", "tiles.base=tissue_area"),
            *("tiles.filters={hsv: {min_share: 0.3}, pen: {}, blur: {mpp: 2.0}}",),
            *("tiles.quarantine_after=3", "tiles.decode=full", "tiles.colour=srgb"),
        ),
    ],
    ids=["dinov2", "no-locals-no-masks", "virchow2", "every-tile-source"],
)
def test_every_switch_of_the_recipe_trains(
    catalogue: Catalogue, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    config = micro_config("steps=3", *overrides)
    assert pretrain_tiles(config, catalogue, tmp_path / "run", device="cpu").is_finished


@pytest.mark.slow
def test_training_learns_to_agree(catalogue: Catalogue, tmp_path: Path) -> None:
    """60 steps: the student's cross-entropy falls clearly below log P, where it starts."""
    config = micro_config("steps=60", "optimizer.peak_lr=3e-3", "optimizer.warmup=0.1")
    pretrain_tiles(config, catalogue, tmp_path / "run", device="cpu")
    loss = [row["loss_dino"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert np.mean(loss[:3]) > np.log(32) - 0.2
    assert np.mean(loss[-10:]) < np.mean(loss[:3]) - 0.3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_on_cuda_starts_where_the_one_on_the_cpu_does(
    catalogue: Catalogue, tmp_path: Path, precision: str
) -> None:
    """The first loss is the CPU's: same tiles, views, masks and weights."""
    config = micro_config("steps=10", f"precision={precision}", "model.stochastic_depth=0")
    pretrain_tiles(config, catalogue, tmp_path / "cpu", device="cpu")
    result = pretrain_tiles(config, catalogue, tmp_path / "cuda", device="cuda")
    assert result.is_finished
    one, other = metrics(tmp_path / "cpu")[0], metrics(tmp_path / "cuda")[0]
    assert other["loss"] == pytest.approx(one["loss"], rel=1e-3 if precision == "fp32" else 3e-2)
    assert all(np.isfinite(row["loss"]) for row in metrics(tmp_path / "cuda"))
