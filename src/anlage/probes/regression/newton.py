"""Newton's method for a penalised partial likelihood, its steps by conjugate gradients."""

# Shape suffixes: N rows (patients), K components.

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from anlage.probes.regression.partial_likelihood import PartialLikelihood, Slope

MAX_STEPS = 100
CLOSE = 1e-8
TOLERANCE = 1e-16


def penalised_fit(
    likelihood: PartialLikelihood, row_NK: Tensor, *, l2: float, start_K: Tensor
) -> tuple[Tensor, bool]:
    """Weights that minimise the negative log partial likelihood + l2 / 2 |w|^2.

    Rows are principal components, so the diagonal of the curvature is nearly all of it and a step
    takes few products with the rows; no (K, K) matrix is formed. Stops when the squared Newton
    decrement is at most 1e-16 of the number of events.

    Args:
        likelihood: Of these rows.
        row_NK: (N, K) float64 uncorrelated coordinates.
        l2: Strength of the penalty, >= 0.
        start_K: (K,) where to start.

    Returns:
        weight_K: (K,) float64.
        has_converged: False when it stopped at the last of 100 steps.
    """
    n_events = len(likelihood.event_row_E)
    spread_K = row_NK.square().sum(dim=0) * (n_events / len(row_NK)) + l2
    weight_K = start_K.clone()
    slope = likelihood.slope(row_NK @ weight_K)
    for _ in range(MAX_STEPS):
        gradient_K = row_NK.T @ slope.gradient_N + l2 * weight_K
        curved = partial(_curved, likelihood, slope, row_NK, l2=l2)
        step_K = _conjugate_gradients(curved, gradient_K, spread_K)
        decrement = float(gradient_K @ step_K)
        if decrement <= TOLERANCE * n_events:
            return weight_K, True
        value = _penalised(slope, weight_K, l2)
        is_close = decrement <= CLOSE * (1 + abs(value))
        length = 1.0
        while True:
            tried_K = weight_K - length * step_K
            slope = likelihood.slope(row_NK @ tried_K)
            gain = value - _penalised(slope, tried_K, l2)
            if is_close or gain >= 1e-4 * length * decrement or length < 1e-10:
                break
            length /= 2
        weight_K = tried_K
    return weight_K, False


def _penalised(slope: Slope, weight_K: Tensor, l2: float) -> float:
    return slope.value + l2 / 2 * float(weight_K @ weight_K)


def _curved(
    likelihood: PartialLikelihood, slope: Slope, row_NK: Tensor, direction_K: Tensor, *, l2: float
) -> Tensor:
    along_N = likelihood.curvature(slope, row_NK @ direction_K)
    return row_NK.T @ along_N + l2 * direction_K


def _conjugate_gradients(
    curved: Callable[[Tensor], Tensor], gradient_K: Tensor, spread_K: Tensor
) -> Tensor:
    """Solve curvature @ step = gradient to 1e-3 of it, or better where it is small."""
    step_K = torch.zeros_like(gradient_K)
    left_K = gradient_K.clone()
    scaled_K = left_K / spread_K
    direction_K, size = scaled_K.clone(), float(left_K @ scaled_K)
    enough = size * min(1e-6, size)
    for _ in range(4 * len(gradient_K) + 50):
        if size <= enough or size <= 0:
            break
        curved_K = curved(direction_K)
        bend = float(direction_K @ curved_K)
        if bend <= 0:  # flat to rounding
            break
        step_K += (size / bend) * direction_K
        left_K -= (size / bend) * curved_K
        scaled_K = left_K / spread_K
        size, before = float(left_K @ scaled_K), size
        direction_K = scaled_K + (size / before) * direction_K
    return step_K
