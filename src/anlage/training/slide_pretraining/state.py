"""Everything a slide pretraining run changes as it goes, and where it begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anlage.distributed import ALONE, Ranks
from anlage.training.checkpoint import SavedCheckpoint
from anlage.training.optimizer import build_optimizer, make_room, optimizer_state
from anlage.training.parallel import Layout
from anlage.training.precision import autocast_dtype
from anlage.training.slide_pretraining.config import SlidePretrainConfig
from anlage.training.slide_pretraining.networks import SlideAutoencoder

FORMAT = "slide-checkpoint/1"


@dataclass
class SlideTraining:
    """Everything a run changes as it goes; what a checkpoint holds.

    Attributes:
        config: The resolved recipe.
        run_dir: The run's folder.
        record: What it was made from: ``run.json``, and what it was resumed with if that changed.
        device: Where tensors live.
        layout: Over which ranks the network lies.
        network: Encoder and decoder.
        run_network: Runs it: itself, or DDP around it.
        optimizer: Over the network.
        steps: Steps of the whole run.
        step: Finished steps.
    """

    config: SlidePretrainConfig
    run_dir: Path
    record: dict[str, Any]
    device: torch.device
    layout: Layout
    network: SlideAutoencoder
    run_network: nn.Module
    optimizer: torch.optim.Optimizer
    steps: int
    step: int = 0

    @property
    def ranks(self) -> Ranks:
        """The processes that share each step."""
        return self.layout.ranks

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds; every random choice is a function of seed and step instead."""
        return {
            "network": self.network.state_dict(),
            "optimizer": optimizer_state(self.optimizer, self.network),
        }

    def restore(self, saved: SavedCheckpoint) -> None:
        """Read a checkpoint into the tensors that are there, from however many ranks it is.

        Raises:
            CheckpointError: If it is of another network.
        """
        self._make_room([stored.path for stored in saved.index.tensors])
        saved.load_into(self.state(), ranks=self.ranks)
        self.step = saved.step

    @property
    def checkpoint_bytes(self) -> int:
        """What a checkpoint takes on disk: weights and two moments."""
        return 3 * sum(parameter.nbytes for parameter in self.network.parameters())

    def _make_room(self, paths: Sequence[Sequence[str]]) -> None:
        names: dict[str, set[str]] = {}
        for part, *path in paths:
            if part == "optimizer":
                names.setdefault(path[0], set()).add(path[1])
        make_room(self.optimizer, self.network, names)


def fresh_slide_training(
    config: SlidePretrainConfig,
    run_dir: Path,
    record: dict[str, Any],
    *,
    input_width: int,
    n_bags: int,
    device: torch.device,
    ranks: Ranks = ALONE,
) -> SlideTraining:
    """Network and optimiser at step 0, from the seed.

    Args:
        config: The resolved recipe.
        run_dir: The run's folder.
        record: ``run.json``.
        input_width: Width of the tile embeddings.
        n_bags: Bags that are trained on.
        device: Where to train.
        ranks: The processes that share each step; all begin with the same weights.

    Raises:
        DistributedError: If the ranks cannot be laid out as ``engine`` says.
    """
    dtype = autocast_dtype(config.precision, device)
    layout = Layout.of(config.layout, ranks, device, dtype=dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = SlideAutoencoder(config, input_width=input_width)
    network = network.to(device)
    return SlideTraining(
        config=config,
        run_dir=run_dir,
        record=record,
        device=device,
        layout=layout,
        network=network,
        run_network=layout.runner(network),
        optimizer=build_optimizer(network, config.optimisation, depth=config.model.depth),
        steps=config.steps(n_bags),
    )
