"""Several tests at once: Holm's adjustment of p-values."""

# Shape suffixes: T tests.

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def holm(p_value_T: ArrayLike) -> NDArray[np.float64]:
    """Adjusted p-values that keep the chance of any false claim, over all tests, at the level.

    The i-th smallest of T is multiplied by T - i + 1, and is no smaller than those before it; claim
    a difference where the adjusted value is at most the level. Needs no independence, and never
    rejects less than Bonferroni.

    Args:
        p_value_T: (T,) p-values, 0 to 1. Give all tests that were made, not those that look good.

    Returns:
        (T,) float64 in the order given, 0 to 1.

    Raises:
        ValueError: If there is none, or a value is not a number from 0 to 1.

    Source: Holm 1979, Scand J Statist 6:65.
    """
    p_value = np.asarray(p_value_T, dtype=np.float64)
    if p_value.ndim != 1 or not len(p_value) or not ((p_value >= 0) & (p_value <= 1)).all():
        msg = (
            "holm: needs a non-empty list of p-values from 0 to 1; got "
            f"{p_value.ravel()[:10].tolist()} of shape {p_value.shape}. "
            "Leave out tests that had no value, and say so."
        )
        raise ValueError(msg)
    order = np.argsort(p_value, kind="stable")
    n_left = np.arange(len(p_value), 0, -1)
    adjusted = np.empty_like(p_value)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p_value[order] * n_left))
    return adjusted
