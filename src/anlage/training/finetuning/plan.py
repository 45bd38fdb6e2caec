"""What a fine-tuning run would do, said before it does anything."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from anlage.training.finetuning.config import FinetuneConfig
from anlage.training.finetuning.network import refuse_unfit_model
from anlage.training.finetuning.preparation import Prepared
from anlage.training.finetuning.targets import Targets
from anlage.training.finetuning.task_config import SURVIVAL


def plan_lines(config: FinetuneConfig, prepared: Prepared) -> Iterator[str]:
    """Slides, folds with their classes, model and steps, one line each.

    Args:
        config: The recipe.
        prepared: Labels, bags and folds, opened.
    """
    targets, material = prepared.material.targets, prepared.material
    yield f"task: {config.task.kind}: {config.task.name}"
    n_tiles = material.bags.n_tiles
    n_patients = len(np.unique(targets.patient_N[prepared.rows]))
    yield (
        f"slides: {len(prepared.rows)} of {n_patients} patients; bags of "
        f"{min(n_tiles):,} to {max(n_tiles):,} tiles, {material.bags.width} wide"
    )
    for reason, n in prepared.passed_over.items():
        yield f"passed over: {n} slides {reason}"
    yield _model_line(config, prepared)
    for split in prepared.splits:
        steps = math.ceil(config.epochs * len(split.train) / config.batch_size)
        sides = "; ".join(_side(targets, name, rows) for name, rows in split.sides.items())
        yield f"fold {split.name}: {sides}; {steps} steps"


def _model_line(config: FinetuneConfig, prepared: Prepared) -> str:
    material = prepared.material
    n_parameters = refuse_unfit_model(
        config,
        material.targets,
        prepared.splits,
        input_width=material.bags.width,
        encoder=material.encoder,
    )
    rate = config.optimizer.rate(config.batch_size)
    return (
        f"model: {n_parameters / 1e6:.2f} M parameters; {config.epochs} epochs of "
        f"{config.batch_size} bags a step; peak rate {rate:.3g}"
    )


def _side(targets: Targets, name: str, rows: NDArray[np.int64]) -> str:
    n_patients = len(np.unique(targets.patient_N[rows]))
    told = f"{name} {len(rows)} slides of {n_patients} patients"
    target_NK = targets.target_NK[rows]
    if targets.task.kind in SURVIVAL:
        return f"{told}, {int(target_NK[:, 1].sum())} events"
    if targets.task.kind in {"binary", "multi_class", "ordinal"}:
        counts = [
            f"{int((target_NK[:, 0] == code).sum())} {label}"
            for code, label in enumerate(targets.classes)
        ]
        return f"{told} ({', '.join(counts)})"
    return told
