"""A step that went wrong in a run goes wrong again, from what the run left on disk alone."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from replayed_step import batch_of, replayed
from same_run import before_steps

from anlage.errors import TrainingError
from anlage.slides.catalogue import Catalogue
from anlage.tiles.stream import TileBatch
from anlage.training import pending_step, train_step, training_state
from anlage.training.compiled import compile_parts
from anlage.training.replay import load_replay
from anlage.training.tile_pretrain import pretrain_tiles
from anlage.training.training_state import Training
from micro_recipe import micro_config

STEP = 3
FOLDER = f"non_finite/step-{STEP:08d}"


def overflow(training: Training, _: TileBatch) -> None:
    """Weights that no float32 product can bear, in one block of the student."""
    if training.step == STEP:
        with torch.no_grad():
            training.student.encoder.blocks[1].mlp.fc2.weight.fill_(3e38)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("optimizer.kind=stable_adamw", "optimizer.clip_norm=null", "accumulate=2"),
        ("objective.targets=centering", "objective.gram={start: 0.2}"),
        ("engine.compile=blocks", "precision=fp32"),
    ],
    ids=["adamw", "stable adamw, in parts", "centres, gram", "compiled"],
)
def test_it_fails_again_in_the_same_place(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides
) -> None:
    run, again = tmp_path / "run", tmp_path / "again"
    eagerly = partial(compile_parts, backend="eager")
    monkeypatch.setattr(training_state, "compile_parts", eagerly)
    with monkeypatch.context() as patch:
        before_steps(patch, overflow)
        with pytest.raises(TrainingError, match=f"not finite at step {STEP}"):
            pretrain_tiles(micro_config("steps=6", *overrides), catalogue, run, device="cpu")
    replay = load_replay(run / FOLDER)
    assert replay.facts["finding"]["name"] == "student.encoder.blocks.1.mlp.fc2"
    training = replayed(run, replay, again)
    with pytest.raises(TrainingError, match=f"not finite at step {STEP}"):
        train_step.train_step(training, batch_of(replay))
    once_more = load_replay(again / FOLDER)
    assert once_more.facts == replay.facts


def test_a_step_that_cannot_be_run_once_more_is_told_and_saved(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search needs as much memory as the step did; an error of its own hides nothing."""
    calls = []

    def out_of_memory(training: Training, _):
        calls.append(training.step)
        raise torch.OutOfMemoryError

    before_steps(monkeypatch, overflow)
    monkeypatch.setattr(pending_step, "run_passes", out_of_memory)
    with pytest.raises(TrainingError, match=f"not finite at step {STEP}.*is saved for replay"):
        pretrain_tiles(micro_config("steps=6"), catalogue, tmp_path, device="cpu")
    assert calls == [STEP]
    assert load_replay(tmp_path / FOLDER).facts["finding"] is None
