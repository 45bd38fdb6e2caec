"""A step that went wrong in a run, set up once more from what the run left on disk alone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from anlage.tiles.sampling import TileRequest, TileWindow
from anlage.tiles.stream import TileBatch
from anlage.training.replay import Replay
from anlage.training.tile_config import TilePretrainConfig
from anlage.training.training_state import Training, fresh_training


def replayed(run: Path, replay: Replay, again_in: Path) -> Training:
    """The run as it was before the step, from ``run.json`` and the replay."""
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    config = TilePretrainConfig.model_validate(record["config"])
    assert replay.state is not None
    training = fresh_training(
        config, again_in, record, device=torch.device("cpu"), is_restored=True
    )
    training.take_over(replay.step, replay.state)
    return training


def batch_of(replay: Replay) -> TileBatch:
    """The tiles of the step, of the rank that saved them."""
    assert replay.tensors is not None
    return TileBatch(
        g=replay.tensors["g"].numpy().astype(np.int64),
        pixels=replay.tensors["pixels"],
        requests=[
            TileRequest(**tile | {"views": tuple(TileWindow(**view) for view in tile["views"])})
            for tile in replay.facts["tiles"]
        ],
        n_read_errors=0,
        rejected=Counter(),
    )
