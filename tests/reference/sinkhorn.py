"""Textbook Sinkhorn-Knopp on the matrix exp(logits / temperature), float64 numpy."""

from __future__ import annotations

import numpy as np


def slow_sinkhorn_targets(logits: np.ndarray, temperature: float, n_iterations: int) -> np.ndarray:
    """Prototypes are rows and samples columns, as the papers write it."""
    mass = np.exp(logits.astype(np.float64) / temperature).T
    mass /= mass.sum()
    n_prototypes, n_samples = mass.shape
    for _ in range(n_iterations):
        for p in range(n_prototypes):
            mass[p] /= mass[p].sum() * n_prototypes
        for b in range(n_samples):
            mass[:, b] /= mass[:, b].sum() * n_samples
    return (mass * n_samples).T
