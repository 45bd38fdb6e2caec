"""Reduction of a picture by area, the slow way: every source pixel by the share that is covered."""

from __future__ import annotations

import math

import numpy as np


def overlap(a0: float, a1: float, b0: float, b1: float) -> float:
    return max(min(a1, b1) - max(a0, b0), 0.0)


def shares(n_target: int, n_source: int, ratio: float) -> np.ndarray:
    """(n_target, n_source) share of each source pixel in each target pixel; rows sum to 1."""
    weights = np.zeros((n_target, n_source))
    for i in range(n_target):
        for j in range(math.floor(i * ratio), min(math.ceil((i + 1) * ratio), n_source)):
            weights[i, j] = overlap(i * ratio, (i + 1) * ratio, j, j + 1)
    return weights / weights.sum(1, keepdims=True)


def slow_area_resampling(source: np.ndarray, ratio: float, size_px: int) -> np.ndarray:
    """The first ``size_px`` squared target pixels, float64, of a (H, W, 3) picture."""
    down = shares(size_px, source.shape[0], ratio)
    across = shares(size_px, source.shape[1], ratio)
    return np.einsum("ih,jw,hwc->ijc", down, across, source.astype(np.float64))
