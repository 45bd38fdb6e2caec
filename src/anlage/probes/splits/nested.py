"""Divisions inside the train side of a split, on which settings are chosen."""

# Shape suffixes: N rows (tiles).

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anlage.probes.checks import labels_of
from anlage.probes.splits.grouped import checked_columns, dealt_sides, grouped_folds
from anlage.probes.splits.split import Split


def inner_split(
    split: Split,
    label_N: ArrayLike,
    group_N: ArrayLike,
    *,
    share: float = 0.2,
    seed: int = 0,
    fewest_groups: int = 2,
) -> Split:
    """The same split with whole groups of its train side set apart for validation.

    The test side is untouched and its labels are not read. Where the split has a validation side
    already, it is joined to the train side first.

    Args:
        split: An outer split.
        label_N: (N,) classes of all rows that the split was made from.
        group_N: (N,) their groups.
        share: Of the train side that validates, above 0 and below 1.
        seed: Of the order in which groups are dealt out.
        fewest_groups: Groups a class needs on the train side: one to train, one to validate.

    Raises:
        ValueError: If the share is none, a group is on two sides, or the train side has too few
            groups in all or in a class.
    """
    who = f"inner_split of {split.name}"
    if not 0 < share < 1:
        msg = f"{who}: share needs to be above 0 and below 1; got {share}. Leave it at 0.2."
        raise ValueError(msg)
    row = _inner_rows(split, group_N)
    label, group = _columns(who, label_N, group_N, row=row, fewest_groups=fewest_groups)
    side = dealt_sides(who, label, group, shares=[1 - share, share], seed=(seed, 0))
    return replace(split, train=row[side == 0], validation=row[side == 1])


def inner_folds(
    split: Split,
    label_N: ArrayLike,
    group_N: ArrayLike,
    *,
    n_folds: int = 5,
    seed: int = 0,
    fewest_groups: int = 2,
) -> list[Split]:
    """One split an inner fold: that fold of the train side validates, the others train.

    Returns:
        Splits named ``OUTER inner 0`` and so on, all with the outer test side.

    Raises:
        ValueError: As in ``inner_split`` and ``grouped_folds``.
    """
    who = f"inner_folds of {split.name}"
    row = _inner_rows(split, group_N)
    label, group = _columns(who, label_N, group_N, row=row, fewest_groups=fewest_groups)
    folds = grouped_folds(label, group, n_folds=n_folds, seed=seed, fewest_groups=fewest_groups)
    return [
        replace(
            split,
            name=f"{split.name} inner {fold.name}",
            train=row[fold.train],
            validation=row[fold.test],
        )
        for fold in folds
    ]


def _inner_rows(split: Split, group_N: ArrayLike) -> NDArray[np.int64]:
    split.refuse_cut_groups(group_N)
    return np.sort(np.concatenate([split.train, split.validation]))


def _columns(
    who: str,
    label_N: ArrayLike,
    group_N: ArrayLike,
    *,
    row: NDArray[np.int64],
    fewest_groups: int,
) -> tuple[NDArray[Any], NDArray[Any]]:
    group = labels_of(who, "groups", group_N)
    label = np.asarray(label_N)
    if len(label) != len(group):
        labels_of(who, "labels", label, n_rows=len(group))
    return checked_columns(who, label[row], group[row], fewest_groups=fewest_groups)
