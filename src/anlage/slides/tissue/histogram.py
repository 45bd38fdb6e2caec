"""Histograms of large planes of small whole numbers, and what can be read off them.

Sorting or converting a plane of 64 million pixels would take several times its memory.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

AT_ONCE = 2**20  # values


def histogram(values: NDArray[np.unsignedinteger], n_bins: int) -> NDArray[np.int64]:
    """How often each value from 0 to ``n_bins`` - 1 occurs in an array; (n_bins,) int64."""
    flat = values.reshape(-1)
    counts = np.zeros(n_bins, dtype=np.int64)
    for start in range(0, len(flat), AT_ONCE):
        counts += np.bincount(flat[start : start + AT_ONCE], minlength=n_bins)
    return counts


def ranked(counts: NDArray[np.int64], rank: int) -> int:
    """The value at a place (from 0) of the sorted values."""
    return int(np.searchsorted(np.cumsum(counts), rank, side="right"))


def median(counts: NDArray[np.int64]) -> float:
    """The median of the values, the mean of the middle two where their number is even."""
    n = int(counts.sum())
    return (ranked(counts, (n - 1) // 2) + ranked(counts, n // 2)) / 2


def otsu_threshold(counts: NDArray[np.int64]) -> int:
    """The last value of the lower class, by the largest variance between the two classes.

    Args:
        counts: (N,) counts of the values 0 to N - 1.

    Returns:
        The threshold t: the classes are ``<= t`` and ``> t``. -1 if all values are the same, so
        that nothing is in the lower class.

    Source: Otsu 1979, A threshold selection method from gray-level histograms.
    """
    count = np.cumsum(counts, dtype=np.float64)
    moment = np.cumsum(counts * np.arange(len(counts), dtype=np.float64))
    inside = (counts > 0) & (count < count[-1])  # both classes hold something
    if not inside.any():
        return -1
    below, above = count[inside], count[-1] - count[inside]
    means = moment[inside] / below - (moment[-1] - moment[inside]) / above
    return int(np.flatnonzero(inside)[np.argmax(below * above * means**2)])
