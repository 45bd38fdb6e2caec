"""Runs that are watched, stopped and compared: the same weights and metrics, bit by bit."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from anlage.tiles.stream import TileBatch
from anlage.training import tile_pretrain
from anlage.training.checkpoint import FORMAT, newest_checkpoint
from anlage.training.log import read_metrics
from anlage.training.pending_step import PendingStep
from anlage.training.run_saves import PretrainResult
from anlage.training.training_state import Training

TIMING = {"tiles_per_s", "data_wait_share", "tflops", "mfu"}
Seen = Callable[[Training, TileBatch], None]


def tensors_of(run: Path, *, form: str = FORMAT) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint, flattened to its dotted name."""
    saved = newest_checkpoint(run / "checkpoints", form=form)
    assert saved is not None
    flat: dict[str, torch.Tensor] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            flat[prefix] = value
        elif isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}{key}.", inner)

    walk("", saved.read_whole())
    return {name.rstrip("."): tensor for name, tensor in flat.items()}


def metrics_of(run: Path) -> list[dict[str, float]]:
    """The rows of a run without what a clock says."""
    rows = read_metrics(run / "metrics.jsonl")
    return [{name: v for name, v in row.items() if name not in TIMING} for row in rows]


def assert_same_run(one: Path, other: Path, *, form: str = FORMAT) -> None:
    """The same tensors in the newest checkpoint, bit by bit, and the same metrics."""
    mine, theirs = tensors_of(one, form=form), tensors_of(other, form=form)
    assert mine.keys() == theirs.keys()
    assert len(mine) > 50
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name
    assert metrics_of(one) == metrics_of(other)


def before_steps(patch: pytest.MonkeyPatch, act: Seen) -> None:
    """Call ``act`` before each step of the runs that follow, while ``patch`` lasts."""
    launch = tile_pretrain.launch_step

    def acted(training: Training, batch: TileBatch, *, wants_stop: bool) -> PendingStep:
        act(training, batch)
        return launch(training, batch, wants_stop=wants_stop)

    patch.setattr(tile_pretrain, "launch_step", acted)


@contextmanager
def stopped_after(steps: int) -> Iterator[None]:
    """A real SIGINT arrives in the step that is this one."""

    def interrupt(training: Training, _: TileBatch) -> None:
        if training.step == steps - 1:
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        before_steps(patch, interrupt)
        yield


def run_in_two(pretrain: Callable[..., PretrainResult], run: Path, *, stop: int) -> None:
    """Stop a run with a signal after some steps, and go on to its end."""
    with stopped_after(stop):
        stopped = pretrain(run)
    assert (stopped.steps, stopped.is_finished) == (stop, False)
    assert pretrain(run, resume=True).is_finished
