"""Schedules: values as pure functions of the step, so that nothing has to be saved."""

from __future__ import annotations

from math import cos, pi, sqrt

from anlage.training.optimizer_config import Optimisation
from anlage.training.section import Ramp


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
    """Learning rate at one step: a linear warm-up from 0, a schedule, a linear cooldown.

    With W steps of warm-up the rate after them is, by ``config.schedule``,

        cosine:        min_lr + (peak_lr - min_lr) (1 + cos(pi (step - W) / (steps - W))) / 2
        inverse_sqrt:  max(min_lr, peak_lr sqrt(W / step)),  W at least 1
        constant:      peak_lr

    and in the last ``config.cooldown * steps`` steps a line from there to ``min_lr``. As in
    DINOv2 the first step has rate 0 when there is a warm-up, and ``min_lr`` belongs to the step
    after the last one.

    Args:
        config: Peak, least rate, warm-up, schedule and cooldown.
        step: Step, 0 to ``steps - 1``.
        steps: Steps of the whole run.

    Returns:
        The rate; never below ``min_lr`` after the warm-up.

    Source: cosine as in DINOv2, arXiv:2304.07193; inverse square root with linear cooldown as in
    Vorontsov et al. 2023, Virchow, arXiv:2309.07778; constant as in DINOv3, arXiv:2508.10104.
    """
    warmup = round(config.warmup * steps)
    if config.schedule == "inverse_sqrt":
        warmup = max(warmup, 1)
    if step < warmup:
        return config.peak_lr * step / warmup
    if config.schedule == "cosine":
        progress = (step - warmup) / max(steps - warmup, 1)
        return config.min_lr + (config.peak_lr - config.min_lr) * (1 + cos(pi * progress)) / 2
    cooldown_start = max(steps - round(config.cooldown * steps), warmup)
    rate = config.peak_lr
    if config.schedule == "inverse_sqrt":
        rate = max(config.min_lr, rate * sqrt(warmup / min(step, cooldown_start)))
    if step < cooldown_start:
        return rate
    left = (steps - step) / max(steps - cooldown_start, 1)
    return config.min_lr + left * (rate - config.min_lr)
