"""How evenly the classes lie on the test sides of splits, to be read before they are used."""

# Shape suffixes: N rows (tiles), S splits, C classes.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anlage.probes.checks import labels_of
from anlage.probes.splits.split import Split


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Balance:
    """Groups of each class on each test side.

    Attributes:
        class_C: (C,) classes, sorted.
        n_groups_SC: (S, C) int64 groups with a row of the class on the test side.
        share_SC: (S, C) float64, of all groups of the class that any split tests; columns of folds
            that do not overlap sum to 1.
        worst: Largest distance of a share from 1 / S, 0 to 1.
        never_tested: Classes, by split, that its test side lacks: no score a class, no AUROC there.
        never_trained: Classes that a test side has and its train side lacks.
    """

    class_C: NDArray[Any]
    n_groups_SC: NDArray[np.int64]
    share_SC: NDArray[np.float64]
    worst: float
    never_tested: dict[str, list[str]]
    never_trained: dict[str, list[str]]


def balance_of(splits: Sequence[Split], label_N: ArrayLike, group_N: ArrayLike) -> Balance:
    """Count the groups of each class on the test sides.

    Args:
        splits: Folds, or any splits of the same rows.
        label_N: (N,) classes.
        group_N: (N,) groups.

    Raises:
        ValueError: If a column is unusable or a group is on two sides of a split.
    """
    group = labels_of("balance_of", "groups", group_N)
    label = labels_of("balance_of", "labels", label_N, n_rows=len(group))
    for split in splits:
        split.refuse_cut_groups(group)
    class_C = np.unique(label)
    test_SC = np.array([_n_groups(class_C, label, group, split.test) for split in splits])
    train_SC = np.array([_n_groups(class_C, label, group, split.train) for split in splits])
    share_SC = test_SC / np.maximum(test_SC.sum(axis=0), 1)
    return Balance(
        class_C=class_C,
        n_groups_SC=test_SC,
        share_SC=share_SC,
        worst=float(np.abs(share_SC - 1 / len(splits)).max()),
        never_tested=_named(splits, class_C, test_SC == 0),
        never_trained=_named(splits, class_C, (test_SC > 0) & (train_SC == 0)),
    )


def _n_groups(
    class_C: NDArray[Any], label: NDArray[Any], group: NDArray[Any], rows: NDArray[np.int64]
) -> list[int]:
    return [len(np.unique(group[rows][label[rows] == name])) for name in class_C]


def _named(
    splits: Sequence[Split], class_C: NDArray[Any], is_SC: NDArray[np.bool_]
) -> dict[str, list[str]]:
    lists = [class_C[is_C].astype(str).tolist() for is_C in is_SC]
    return {split.name: names for split, names in zip(splits, lists, strict=True) if names}
