"""Otsu's threshold by trying every one."""

from __future__ import annotations

import numpy as np


def slow_otsu(values: np.ndarray) -> int:
    """The threshold with the largest variance between classes, tried one by one."""
    best, threshold = 0.0, -1
    for t in sorted(set(values.tolist()))[:-1]:
        below, above = values[values <= t], values[values > t]
        between = len(below) * len(above) * (below.mean() - above.mean()) ** 2
        if between > best * (1 + 1e-12):
            best, threshold = between, t
    return threshold
