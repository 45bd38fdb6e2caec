"""Right predictions by group and class, for the accuracy of each group."""

# Shape suffixes: N tiles, G groups (cases), C classes.

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anlage.probes.checks import labels_of


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GroupCounts:
    """How many tiles of each class each group has, and how many of them were predicted right.

    Attributes:
        group_G: (G,) names of the groups, sorted.
        class_C: (C,) true classes, sorted.
        correct_GC: (G, C) float64 counts of tiles predicted right.
        total_GC: (G, C) float64 counts of tiles.
    """

    group_G: NDArray[Any]
    class_C: NDArray[Any]
    correct_GC: NDArray[np.float64]
    total_GC: NDArray[np.float64]

    def group_accuracy(self) -> NDArray[np.float64]:
        """(G,) share of each group's tiles predicted right, 0 to 1."""
        accuracy: NDArray[np.float64] = self.correct_GC.sum(axis=1) / self.total_GC.sum(axis=1)
        return accuracy


def group_counts(truth_N: ArrayLike, predicted_N: ArrayLike, group_N: ArrayLike) -> GroupCounts:
    """Count right predictions by group and true class.

    Args:
        truth_N: (N,) true labels.
        predicted_N: (N,) predicted labels; one that is no true class is simply wrong.
        group_N: (N,) group (case, patient) of each tile.

    Raises:
        ValueError: If there is no tile or the lengths differ.
    """
    truth = np.asarray(truth_N)
    if truth.size == 0:
        msg = "group_counts: needs one tile or more; got none. Check the split."
        raise ValueError(msg)
    truth = labels_of("group_counts", "truth", truth, n_rows=truth.size)
    predicted = labels_of("group_counts", "predicted", predicted_N, n_rows=len(truth))
    group = labels_of("group_counts", "groups", group_N, n_rows=len(truth))
    class_C, class_code = np.unique(truth, return_inverse=True)
    group_G, group_code = np.unique(group, return_inverse=True)
    cell = group_code * len(class_C) + class_code
    shape = (len(group_G), len(class_C))

    def count(weight: NDArray[Any] | None) -> NDArray[np.float64]:
        counted = np.bincount(cell, weights=weight, minlength=shape[0] * shape[1])
        return counted.reshape(shape).astype(np.float64)

    correct_GC = count((truth == predicted).astype(np.float64))
    return GroupCounts(
        group_G=group_G, class_C=class_C, correct_GC=correct_GC, total_GC=count(None)
    )
