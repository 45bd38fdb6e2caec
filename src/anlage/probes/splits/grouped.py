"""Splits into train and test sides that never cut a group (case, patient) in two."""

# Shape suffixes: N tiles.

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import StratifiedGroupKFold

from anlage.probes.checks import labels_of


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Split:
    """One division into a train and a test side.

    Attributes:
        name: The group left out, the fold, or ``test``.
        train: Rows of the train side, rising int64.
        test: Rows of the test side, rising int64.
    """

    name: str
    train: NDArray[np.int64]
    test: NDArray[np.int64]


def leave_one_group_out(group_N: ArrayLike) -> list[Split]:
    """One split a group, in sorted order: that group is the test side, all others train.

    Raises:
        ValueError: If there are fewer than two groups.
    """
    group = _values("leave_one_group_out", "groups", group_N)
    return _one_split_a_value("leave_one_group_out", group)


def given_folds(fold_N: ArrayLike, group_N: ArrayLike) -> list[Split]:
    """One split a fold, in sorted order: that fold is the test side, all others train.

    Raises:
        ValueError: If there are fewer than two folds or a group is in two of them.
    """
    fold = _values("given_folds", "folds", fold_N)
    _refuse_cut_groups("given_folds", group_N, fold)
    return _one_split_a_value("given_folds", fold)


def train_test(side_N: ArrayLike, group_N: ArrayLike) -> list[Split]:
    """The one split that a ``train`` / ``test`` column names; rows of another value stay out.

    Raises:
        ValueError: If a side is empty or a group is on two sides.
    """
    side = _values("train_test", "sides", side_N)
    _refuse_cut_groups("train_test", group_N, side)
    train, test = np.flatnonzero(side == "train"), np.flatnonzero(side == "test")
    if not (len(train) and len(test)):
        msg = (
            "train_test: needs rows marked 'train' and rows marked 'test'; got "
            f"{len(train)} and {len(test)}, values {sorted(set(side.tolist()))}. Rename the values."
        )
        raise ValueError(msg)
    return [Split(name="test", train=train, test=test)]


def grouped_folds(
    label_N: ArrayLike, group_N: ArrayLike, *, n_folds: int, seed: int = 0
) -> list[Split]:
    """Folds made of whole groups, with the classes spread over them as evenly as groups allow.

    Args:
        label_N: (N,) labels.
        group_N: (N,) groups.
        n_folds: Folds, 2 to the number of groups.
        seed: Of the order in which groups are dealt out.

    Raises:
        ValueError: If there are fewer groups than folds.
    """
    group = _values("grouped_folds", "groups", group_N)
    label = labels_of("grouped_folds", "labels", label_N, n_rows=len(group))
    n_groups = len(np.unique(group))
    if not 2 <= n_folds <= n_groups:
        msg = (
            f"grouped_folds: n_folds needs to be 2 to {n_groups}, the number of groups; "
            f"got {n_folds}. Ask for fewer folds."
        )
        raise ValueError(msg)
    dealer = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    fold = np.empty(len(group), dtype=np.int64)
    for number, (_, test) in enumerate(dealer.split(np.zeros((len(group), 1)), label, group)):
        fold[test] = number
    return given_folds(fold, group)


def groups_on_two_sides(group_N: ArrayLike, side_N: ArrayLike) -> list[str]:
    """Names of the groups whose tiles carry more than one side (fold); empty is as it should be."""
    pairs = set(zip(np.asarray(group_N).tolist(), np.asarray(side_N).tolist(), strict=True))
    seen: dict[Any, int] = {}
    for group, _ in pairs:
        seen[group] = seen.get(group, 0) + 1
    return sorted(str(group) for group, count in seen.items() if count > 1)


def _values(who: str, name: str, values: ArrayLike) -> NDArray[Any]:
    array = np.asarray(values)
    return labels_of(who, name, array, n_rows=array.size)


def _refuse_cut_groups(who: str, group_N: ArrayLike, side: NDArray[Any]) -> None:
    group = labels_of(who, "groups", group_N, n_rows=len(side))
    cut = groups_on_two_sides(group, side)
    if cut:
        msg = (
            f"{who}: a group needs to be on one side only; got {len(cut)} on two, such as "
            f"{', '.join(cut[:3])}. Move all tiles of a group to the same fold or side."
        )
        raise ValueError(msg)


def _one_split_a_value(who: str, value: NDArray[Any]) -> list[Split]:
    names = np.unique(value)
    if len(names) < 2:
        msg = (
            f"{who}: needs two different values or more, to test on one and train on the rest; "
            f"got {names.tolist()}. Give tiles of more cases, or other folds."
        )
        raise ValueError(msg)
    return [
        Split(
            name=str(name), train=np.flatnonzero(value != name), test=np.flatnonzero(value == name)
        )
        for name in names
    ]
