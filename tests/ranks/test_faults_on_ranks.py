"""A rank that meets a NaN, that is killed, that is asked to stop: the others hear of it in time."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from replayed_step import batch_of, replayed
from two_ranks import run, start

from anlage.errors import TrainingError
from anlage.slides.catalogue import Catalogue
from anlage.training import step_views
from anlage.training.log import read_metrics
from anlage.training.replay import load_replay
from anlage.training.train_step import train_step
from micro_recipe import MICRO

HERE = Path(__file__).parent
MANY = ("steps=400", "checkpoint_every=4", "tiles.split=null")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_nan_on_one_rank_stops_both_before_the_weights(
    catalogue: Catalogue, tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message of each names the tile, which only one of them has; one process replays it."""
    nan_run = tmp_path / "run"
    command = [str(HERE / "nan_on_a_rank.py"), str(catalogue.path), str(nan_run)]
    for said in run([*command, f"engine.kind={engine}"]):
        assert "the loss is not finite at step 2" in said
        assert "g=10" in said
        assert "g=8," not in said
        assert "is saved for replay" in said
    assert len(read_metrics(nan_run / "metrics.jsonl")) == 2
    replays = [load_replay(nan_run / "non_finite" / f"step-00000002-rank-{r}") for r in (0, 1)]
    assert [replay.tensors["g"].tolist() for replay in replays] == [[8, 9], [10, 11]]
    student = torch.load(nan_run / "student.pt")
    for replay in replays:
        assert replay.state["student"].keys() == student.keys()
        assert all(torch.equal(t, replay.state["student"][n]) for n, t in student.items())

    training, batch = replayed(nan_run, replays[1], tmp_path / "again"), batch_of(replays[1])
    with monkeypatch.context() as patch:
        poison(patch)
        with pytest.raises(TrainingError, match=r"not finite at step 2.* First: .*g=10"):
            train_step(training, batch)
    fine = replayed(nan_run, replays[0], tmp_path / "fine")
    assert train_step(fine, batch_of(replays[0]))["loss"] < 100


def poison(patch: pytest.MonkeyPatch) -> None:
    """What the tile's rank did to it."""
    cut = step_views.views

    def poisoned(pixels, g, *, spec, seed):
        made = cut(pixels, g, spec=spec, seed=seed)
        made.local_crops[0] = float("nan")
        return made

    patch.setattr(step_views, "views", poisoned)


def begun(catalogue: Catalogue, folder: Path, *more: str) -> list[subprocess.Popen[str]]:
    """The command line on two ranks, at least six steps into a long run."""
    sets = [part for override in (*MICRO, *MANY) for part in ("--set", override)]
    options = ["--recipe", "tiny", "--slides", str(catalogue.path), "--run", str(folder)]
    command = ["-m", "anlage", "pretrain", "tile", *options, "--device", "cpu", *sets, *more]
    processes = start(command)
    deadline = time.monotonic() + 90
    log = folder / "metrics.jsonl"
    wanted = 6 + (log.read_text().count("\n") if log.exists() else 0)
    while not log.exists() or log.read_text().count("\n") < wanted:
        assert time.monotonic() < deadline, "the run never reached step 6"
        for process in processes:
            assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    return processes


@pytest.mark.slow
def test_a_killed_rank_ends_the_job_and_the_job_goes_on(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    first, second = begun(catalogue, tmp_path / "run")
    second.send_signal(signal.SIGKILL)
    began = time.monotonic()
    said, _ = first.communicate(timeout=60)
    assert first.returncode == 1
    assert time.monotonic() - began < 30
    assert "rank 0 of 2: lost the others" in " ".join(said.split())
    assert "--resume" in said
    second.wait()

    again = begun(catalogue, tmp_path / "run", "--resume")
    before = len(read_metrics(tmp_path / "run" / "metrics.jsonl"))
    assert before >= 6
    again[1].send_signal(signal.SIGUSR1)  # one rank alone is asked to stop; both do, and save
    for process in again:
        assert process.communicate(timeout=60)[0] is not None
        assert process.returncode == 130
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(len(rows)))
    described = tmp_path / "run" / "checkpoints" / f"step-{len(rows):08d}.json"
    assert json.loads(described.read_text())["world_size"] == 2
