"""Everything a pretraining run changes as it goes, and where it begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anlage.models.vit import VisionTransformer
from anlage.training.distill import Guide, guide_of
from anlage.training.networks import EncoderWithHeads, Pupil, frozen_copy
from anlage.training.objective_config import Gram
from anlage.training.optimizer import build_optimizer
from anlage.training.start import start_from
from anlage.training.tile_config import TilePretrainConfig


@dataclass
class Training:
    """Everything a run changes as it goes; what a checkpoint holds.

    Attributes:
        config: The resolved recipe; in the last stage, as it is then.
        run_dir: The run's folder.
        record: What it was made from: ``run.json``, and what it was resumed with if that changed.
        device: Where tensors live.
        student: Trained network.
        teacher: Its moving average.
        optimizer: Over the student.
        centers: Centres of the teacher's logits (centering only).
        step: Finished steps.
        gram: Earlier teacher that Gram anchoring holds on to; None before it begins.
        guide: Frozen teacher of a distillation; None where the moving average teaches.
    """

    config: TilePretrainConfig
    run_dir: Path
    record: dict[str, Any]
    device: torch.device
    student: EncoderWithHeads | Pupil
    teacher: EncoderWithHeads | Pupil
    optimizer: torch.optim.Optimizer
    centers: dict[str, Tensor]
    step: int = 0
    gram: VisionTransformer | None = None
    guide: Guide | None = field(default=None, repr=False)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds; every random choice is a function of seed and step instead."""
        return {
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "centers": self.centers,
            "gram": None if self.gram is None else self.gram.state_dict(),
        }

    def restore(self, step: int, state: Mapping[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        self.student.load_state_dict(state["student"])
        self.teacher.load_state_dict(state["teacher"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.centers = {name: c.to(self.device) for name, c in state["centers"].items()}
        if state["gram"] is not None:
            gram = frozen_copy(self.teacher.encoder)
            gram.load_state_dict(state["gram"])
            self.gram = gram
        self.step = step

    def anchor_teacher(self) -> None:
        """Take the teacher of now as the Gram teacher, if this step asks for it."""
        gram = self.config.objective.gram
        if gram is not None and is_anchored_at(gram, self.step, steps=self.config.steps):
            self.gram = frozen_copy(self.teacher.encoder)


def is_anchored_at(gram: Gram, step: int, *, steps: int) -> bool:
    """Whether the Gram teacher is taken anew before this step."""
    first = round(gram.start * steps)
    if step < first or gram.refresh_every is None:
        return step == first
    period = max(1, round(gram.refresh_every * steps))
    done, left = divmod(step - first, period)
    return left == 0 and done <= gram.max_refreshes


def fresh_training(
    config: TilePretrainConfig,
    run_dir: Path,
    record: dict[str, Any],
    *,
    device: torch.device,
    is_restored: bool = False,
) -> Training:
    """Student, teacher and optimiser at step 0, from the seed and what ``init`` names.

    Args:
        config: The resolved recipe.
        run_dir: The run's folder.
        record: ``run.json``; what the weights come from is added to it.
        device: Where to train.
        is_restored: A checkpoint is put into it next, so that ``init`` need not be there any more.

    Raises:
        EncoderError: If the weights named cannot be read or do not fit.
        CheckpointError: If the run named has other networks.
    """
    with torch.random.fork_rng(devices=[]):
        guide = guide_of(config)  # before the seed: the student does not depend on its teacher
        torch.manual_seed(config.seed)
        student: EncoderWithHeads | Pupil = (
            Pupil(config.model, target_width=guide.width)
            if guide is not None and guide.has_no_heads
            else EncoderWithHeads(config.model, config.head, config.patch_head)
        )
    teacher = frozen_copy(student)
    centers = {
        "cls": torch.zeros(config.head.n_prototypes),
        "patch": torch.zeros((config.patch_head or config.head).n_prototypes),
    }
    if not is_restored:
        centers |= start_from(config.init, (student, teacher), config=config, record=record)
    if guide is not None:
        record["distilled_from"] = guide.provenance
        guide = guide.to(device)
    student, teacher = student.to(device), teacher.to(device)
    return Training(
        config=config,
        run_dir=run_dir,
        record=record,
        device=device,
        student=student,
        teacher=teacher,
        optimizer=build_optimizer(student, config.optimizer, depth=config.model.depth),
        centers={name: center.to(device) for name, center in centers.items()},
        guide=guide,
    )
