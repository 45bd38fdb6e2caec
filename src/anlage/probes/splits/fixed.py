"""Splits that a column of the rows names; nothing is drawn."""

# Shape suffixes: N rows (tiles).

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anlage.probes.checks import array_of, labels_of
from anlage.probes.splits.split import SIDES, Split, refuse_cut_groups, refuse_two_spellings

MOST_ROWS = 2**28  # of all splits: 2 GiB


def leave_one_group_out(group_N: ArrayLike) -> list[Split]:
    """One split a group, in sorted order: that group is the test side, all others train.

    Raises:
        ValueError: If there are fewer than two groups.
    """
    group = _values("leave_one_group_out", "groups", group_N)
    refuse_two_spellings("leave_one_group_out", group)
    return one_split_a_value("leave_one_group_out", group)


def given_folds(fold_N: ArrayLike, group_N: ArrayLike) -> list[Split]:
    """One split a fold, in sorted order: that fold is the test side, all others train.

    Raises:
        ValueError: If there are fewer than two folds or a group is in two of them.
    """
    fold = _values("given_folds", "folds", fold_N)
    refuse_cut_groups("given_folds", group_N, fold)
    return one_split_a_value("given_folds", fold)


def train_test(side_N: ArrayLike, group_N: ArrayLike) -> list[Split]:
    """The one split that a ``train`` / ``val`` / ``test`` column names; other rows stay out.

    Sides are read as in tables: also ``Training``, ``validation``, ``testing`` and so on.

    Raises:
        ValueError: If the train or the test side is empty or a group is on two sides.
    """
    side = _values("train_test", "sides", side_N)
    given, side = side, np.array([SIDES.get(str(n).strip().lower(), str(n)) for n in side], str)
    refuse_cut_groups("train_test", group_N, side)
    train, test = np.flatnonzero(side == "train"), np.flatnonzero(side == "test")
    if not (len(train) and len(test)):
        msg = (
            "train_test: needs rows marked 'train' and rows marked 'test'; got "
            f"{len(train)} and {len(test)}, values {sorted(set(given.tolist()))}. Rename them."
        )
        raise ValueError(msg)
    return [Split(name="test", train=train, validation=np.flatnonzero(side == "val"), test=test)]


def one_split_a_value(who: str, value_N: NDArray[Any]) -> list[Split]:
    """One split a value, in sorted order: rows of that value test, all others train.

    Raises:
        ValueError: If there are fewer than two values, or all splits together hold too many rows.
    """
    names = np.unique(value_N)
    if len(names) < 2:
        msg = (
            f"{who}: needs two different values or more, to test on one and train on the rest; "
            f"got {names.tolist()}. Give tiles of more cases, or other folds."
        )
        raise ValueError(msg)
    if len(names) * len(value_N) > MOST_ROWS:
        msg = (
            f"{who}: needs splits that memory can hold; got {len(names)} splits of {len(value_N)} "
            "rows each. Use grouped_folds, which makes a few folds of whole groups."
        )
        raise ValueError(msg)
    return [
        Split(
            name=str(name),
            train=np.flatnonzero(value_N != name),
            test=np.flatnonzero(value_N == name),
        )
        for name in names
    ]


def _values(who: str, name: str, values: ArrayLike) -> NDArray[Any]:
    array = array_of(values)
    return labels_of(who, name, array, n_rows=array.size)
