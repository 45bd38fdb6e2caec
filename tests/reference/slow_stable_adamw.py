"""StableAdamW with bias correction in place of debiased betas, one weight at a time, float64."""

from __future__ import annotations

import math

import numpy as np


def slow_stable_adamw(
    weight: np.ndarray,
    gradients: list[np.ndarray | None],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> list[np.ndarray]:
    """The weight after each gradient; None is a step without one."""
    theta = [float(value) for value in weight.ravel()]
    mean = [0.0] * len(theta)
    square = [0.0] * len(theta)
    step = 0
    path = []
    for gradient in gradients:
        if gradient is not None:
            step += 1
            corrected = []
            total = 0.0
            for i, g in enumerate(float(value) for value in gradient.ravel()):
                mean[i] = betas[0] * mean[i] + (1 - betas[0]) * g
                square[i] = betas[1] * square[i] + (1 - betas[1]) * g**2
                u = mean[i] / (1 - betas[0] ** step)
                v = square[i] / (1 - betas[1] ** step)
                corrected.append(u / (math.sqrt(v) + eps))
                total += g**2 / max(v, eps**2)
            rms = math.sqrt(total / len(theta))
            rate = lr / rms if rms > 1 else lr
            for i, update in enumerate(corrected):
                theta[i] = theta[i] - rate * weight_decay * theta[i] - rate * update
        path.append(np.array(theta).reshape(weight.shape))
    return path
