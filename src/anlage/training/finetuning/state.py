"""What changes while a fold trains, and its checkpoint: one file, whole or not there."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from anlage.errors import CheckpointError
from anlage.files import replace_whole
from anlage.models.slide_model import SlideModel
from anlage.training.best import Standing
from anlage.training.finetuning.optimizer import moments_by_name, restore_moments

FORMAT = "finetune-checkpoint/1"
CHECKPOINT = "checkpoint.safetensors"
WEIGHT, MOMENT = "weight:", "moment:"


@dataclass(slots=True, eq=False)
class FoldState:
    """A fold in training.

    Attributes:
        network: The model.
        optimizer: Over what of it is trained.
        step: Finished steps.
        standing: Best look at the validation side so far.
    """

    network: SlideModel
    optimizer: torch.optim.Optimizer
    step: int = 0
    standing: Standing = field(default_factory=Standing)

    def save(self, folder: Path) -> None:
        """Write the checkpoint of now, replacing the one before: weights that are trained, moments.

        Raises:
            OSError: If the disk is full; the one before is untouched.
        """
        trained = {n: p for n, p in self.network.named_parameters() if p.requires_grad}
        tensors = {f"{WEIGHT}{name}": parameter.detach() for name, parameter in trained.items()}
        moments = moments_by_name(self.optimizer, self.network)
        tensors |= {f"{MOMENT}{name}": value for name, value in moments.items()}
        facts = {
            "format": FORMAT,
            "step": self.step,
            "best_step": self.standing.step,
            "best_value": None if math.isinf(self.standing.value) else self.standing.value,
            "looks_since": self.standing.looks_since,
        }
        with replace_whole(folder / CHECKPOINT) as beside:
            on_host = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
            save_file(on_host, beside, metadata={"anlage": json.dumps(facts)})

    def restore(self, folder: Path) -> bool:
        """Go back to the checkpoint of the folder; False if there is none.

        Raises:
            CheckpointError: If it is damaged, or of another model.
        """
        path = folder / CHECKPOINT
        if not path.exists():
            return False
        try:
            with safe_open(path, framework="pt") as stored:
                facts = json.loads((stored.metadata() or {}).get("anlage", "{}"))
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            message = f"is damaged ({error}). Delete the fold's folder to train it anew."
            raise CheckpointError(path, message) from error
        self._take(path, facts, tensors)
        return True

    def _take(self, path: Path, facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        weights = {n.removeprefix(WEIGHT): t for n, t in tensors.items() if n.startswith(WEIGHT)}
        moments = {n.removeprefix(MOMENT): t for n, t in tensors.items() if n.startswith(MOMENT)}
        trained = {n: p for n, p in self.network.named_parameters() if p.requires_grad}
        fits = facts.get("format") == FORMAT and {n: t.shape for n, t in weights.items()} == {
            n: p.shape for n, p in trained.items()
        }
        if not fits:
            message = "is not of this model. Delete the fold's folder to train it anew."
            raise CheckpointError(path, message)
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(weights[name])
        restore_moments(self.optimizer, self.network, moments)
        value = facts["best_value"]
        self.step = facts["step"]
        self.standing = Standing(
            step=facts["best_step"],
            value=-math.inf if value is None else value,
            looks_since=facts["looks_since"],
        )
