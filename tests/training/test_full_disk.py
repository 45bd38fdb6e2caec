"""A disk that fills up during a run: a clean stop, nothing lost, and it goes on with more room."""

from __future__ import annotations

import resource
import shutil
import time
from pathlib import Path

import pytest
from same_run import assert_same_run, before_steps, stopped_after
from small_disk import small_disk

from anlage.encoders.folder import load_encoder
from anlage.errors import TrainingError
from anlage.slides.catalogue import Catalogue
from anlage.training.checkpoint import newest_checkpoint
from anlage.training.tile_pretrain import pretrain_tiles
from micro_recipe import micro_config

RECIPE = ("steps=6", "checkpoint_every=2", "keep_checkpoints=3", "optimizer.warmup=0")
KIB = 1024


@pytest.fixture(scope="module")
def straight(catalogue: Catalogue, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("straight") / "run"
    assert pretrain_tiles(micro_config(*RECIPE), catalogue, run, device="cpu").is_finished
    return run


def fill(disk: Path, *, leave: int) -> None:
    """Leave that many bytes."""
    n_bytes = shutil.disk_usage(disk).free - leave
    (disk / "ballast").write_bytes(bytes(n_bytes))


def size_of_checkpoint(run: Path) -> int:
    return sum(file.stat().st_size for file in (run / "checkpoints" / "step-00000006").iterdir())


def size_of_description(run: Path) -> int:
    return (run / "checkpoints" / "step-00000006.json").stat().st_size


def newest_step(run: Path) -> int:
    newest = newest_checkpoint(run / "checkpoints")
    assert newest is not None
    return newest.step


@pytest.mark.parametrize("place", ["metrics", "checkpoint", "encoder"])
def test_a_full_disk_stops_the_run_cleanly_and_it_goes_on_with_more_room(
    straight: Path,
    catalogue: Catalogue,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    """It fills up before step 3: no room for a line, for a checkpoint, or for its encoder."""
    one, description = size_of_checkpoint(straight), size_of_description(straight)
    room = {"metrics": 0, "checkpoint": one // 2, "encoder": one + description + 40 * KIB}
    config = micro_config(*RECIPE)
    with small_disk(tmp_path / "disk", size_kib=16 * KIB) as disk:
        run = disk / "run"
        with monkeypatch.context() as patch:

            def fill_up(training, _) -> None:
                if training.step == 3:
                    while not (run / "checkpoints" / "step-00000002.json").exists():
                        time.sleep(0.01)  # it is written beside the steps
                    fill(disk, leave=room[place])

            before_steps(patch, fill_up)
            told = "the disk is full after step [3-6]; .*--resume"
            with pytest.raises(TrainingError, match=told):
                pretrain_tiles(config, catalogue, run, device="cpu")
        assert newest_step(run) == (4 if place == "encoder" else 2)
        assert load_encoder(run / "encoder").config.provenance["step"] in {2, 4}  # beside it
        assert not list(run.rglob("*.part"))
        (disk / "ballast").unlink()
        assert pretrain_tiles(config, catalogue, run, resume=True, device="cpu").is_finished
        assert_same_run(straight, run)
        assert load_encoder(run / "encoder").config.provenance["step"] == 6


def test_a_limit_on_files_stops_the_run_as_a_full_disk_does(
    straight: Path, catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same where no small disk can be made: writing fails in the same places."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    one = size_of_checkpoint(straight)
    run, config = tmp_path / "run", micro_config(*RECIPE)

    def limit(training, _) -> None:
        if training.step == 3:
            while not (run / "checkpoints" / "step-00000002.json").exists():
                time.sleep(0.01)
            resource.setrlimit(resource.RLIMIT_FSIZE, (one // 2, before[1]))

    with monkeypatch.context() as patch:
        before_steps(patch, limit)
        try:
            with pytest.raises(TrainingError, match="the disk is full after step [46]"):
                pretrain_tiles(config, catalogue, run, device="cpu")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert newest_step(run) == 2
    assert pretrain_tiles(config, catalogue, run, resume=True, device="cpu").is_finished
    assert_same_run(straight, run)


def test_too_little_room_is_refused_before_the_first_step(
    straight: Path, catalogue: Catalogue, tmp_path: Path
) -> None:
    one = size_of_checkpoint(straight)
    with small_disk(tmp_path / "disk", size_kib=16 * KIB) as disk:
        run, config = disk / "run", micro_config(*RECIPE)
        fill(disk, leave=one)
        with pytest.raises(TrainingError, match="to keep 3 checkpoints and write one more"):
            pretrain_tiles(config, catalogue, run, device="cpu")
        assert [path.name for path in run.iterdir()] == [".lock"]
        (disk / "ballast").unlink()
        with stopped_after(5):
            pretrain_tiles(config, catalogue, run, device="cpu")
        fill(disk, leave=2 * one)  # three lie there already; one more has to fit beside them
        assert pretrain_tiles(config, catalogue, run, resume=True, device="cpu").is_finished
        assert_same_run(straight, run)
