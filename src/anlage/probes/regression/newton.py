"""Newton's method for a penalised partial likelihood."""

# Shape suffixes: N rows (patients), K components.

from __future__ import annotations

from math import isfinite

import torch
from torch import Tensor

from anlage.probes.regression.partial_likelihood import PartialLikelihood, Slope

MAX_STEPS = 100
CLOSE = 1e-8
TOLERANCE = 1e-16
JITTER = 1e-12


def penalised_fit(
    likelihood: PartialLikelihood, row_NK: Tensor, *, l2: float, start_K: Tensor
) -> tuple[Tensor, bool]:
    """Weights that minimise the negative log partial likelihood + l2 / 2 |w|^2.

    A step halves until it gains. Stops when the squared Newton decrement is at most 1e-16 of the
    number of events. Memory: some (N, K) and (K, K) float64 arrays.

    Args:
        likelihood: Of these rows.
        row_NK: (N, K) float64 coordinates.
        l2: Strength of the penalty, >= 0.
        start_K: (K,) where to start.

    Returns:
        weight_K: (K,) float64.
        has_converged: False when it stopped at the last of 100 steps.
    """
    n_events = len(likelihood.event_row_E)
    weight_K = start_K.clone()
    slope = likelihood.slope(row_NK @ weight_K)
    for _ in range(MAX_STEPS):
        gradient_K = row_NK.T @ slope.gradient_N + l2 * weight_K
        step_K = _newton_step(row_NK.T @ likelihood.curvature(slope, row_NK), gradient_K, l2)
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
            has_gained = isfinite(gain) and gain >= 1e-4 * length * decrement
            if is_close or has_gained or length < 1e-10:  # weights that underflow give infinity
                break
            length /= 2
        weight_K = tried_K
    return weight_K, False


def _penalised(slope: Slope, weight_K: Tensor, l2: float) -> float:
    return slope.value + l2 / 2 * float(weight_K @ weight_K)


def _newton_step(curved_KK: Tensor, gradient_K: Tensor, l2: float) -> Tensor:
    curved_KK.diagonal().add_(l2)
    factor_KK, failed = torch.linalg.cholesky_ex(curved_KK)
    if int(failed):  # flat to rounding in some direction
        curved_KK.diagonal().add_(JITTER * curved_KK.diagonal().max())
        factor_KK, _ = torch.linalg.cholesky_ex(curved_KK)
    return torch.cholesky_solve(gradient_K[:, None], factor_KK)[:, 0]
