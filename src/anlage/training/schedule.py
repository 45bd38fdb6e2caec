"""Schedules: values as pure functions of the step, so that nothing has to be saved."""

from __future__ import annotations

from math import cos, pi

from anlage.training.tile_config import Optimisation, Ramp


def ramp_value(ramp: Ramp, step: int, *, steps: int) -> float:
    """Value of a ramp at one step.

    Args:
        ramp: Where it starts and ends, how long it takes, and its shape.
        step: Step, 0 to ``steps - 1``.
        steps: Steps of the whole run.

    Returns:
        The value; ``ramp.end`` from ``ramp.over * steps`` on.
    """
    length = ramp.over * steps
    if step >= length:
        return ramp.end
    progress = step / length
    if ramp.shape == "cosine":
        progress = (1 - cos(pi * progress)) / 2
    return ramp.start + progress * (ramp.end - ramp.start)


def learning_rate(config: Optimisation, step: int, *, steps: int) -> float:
    """Learning rate at one step: linear warm-up from 0, then a cosine to ``min_lr``.

    As in DINOv2 the first step has rate 0 when there is a warm-up, and the cosine runs over the
    steps that are left.
    """
    warmup = round(config.warmup * steps)
    if step < warmup:
        return config.peak_lr * step / warmup
    progress = (step - warmup) / max(steps - warmup, 1)
    return config.min_lr + (config.peak_lr - config.min_lr) * (1 + cos(pi * progress)) / 2
