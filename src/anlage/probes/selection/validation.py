"""The rows a setting is chosen on: the validation side of a split, and the patients they are of."""

# Shape suffixes: N all rows, V rows of the validation side, C classes.

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anlage.probes.checks import Rows, array_of, labels_of
from anlage.probes.metrics.classification import truth_codes
from anlage.probes.splits.split import Split, group_name


@dataclass(frozen=True, kw_only=True, slots=True)
class ChosenOn:
    """Where a setting comes from.

    Attributes:
        split: Name of the split.
        n_rows: Rows of its validation side.
        n_groups: Groups (patients) these rows are of.
        groups: Their names.
    """

    split: str
    n_rows: int
    n_groups: int
    groups: frozenset[str] = field(repr=False)

    def refuse_groups(self, who: str, group_N: ArrayLike | None, *, n_rows: int) -> None:
        """Refuse rows of groups that the setting was chosen on; None leaves it unchecked.

        Raises:
            ValueError: If there are some.
        """
        if group_N is None:
            return
        group = labels_of(who, "groups", group_N, n_rows=n_rows)
        shared = sorted(self.groups & {group_name(name) for name in group.tolist()})
        if shared:
            msg = (
                f"{who}: needs other patients than those it was chosen on; got {len(shared)} of "
                f"them, such as {', '.join(shared[:3])}. Apply it to the test side."
            )
            raise ValueError(msg)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ValidationSide:
    """Rows, groups and origin of a validation side.

    Attributes:
        rows: (V,) its rows.
        group_V: (V,) their groups.
        n_all: N, rows that the split was made from.
        chosen_on: What to remember of it.
    """

    rows: NDArray[np.int64]
    group_V: NDArray[Any]
    n_all: int
    chosen_on: ChosenOn

    def codes(self, who: str, truth_N: Rows, class_C: Rows) -> NDArray[np.int64]:
        """(V,) place of each true class among the classes; labels of other rows are not read.

        Raises:
            ValueError: If labels are unknown or missing, or all of one class.
        """
        code_V = truth_codes(self.take(who, "truth", truth_N), class_C)
        self.refuse_one_class(who, code_V)
        return code_V

    def refuse_one_class(self, who: str, code_V: NDArray[Any]) -> None:
        """Refuse a validation side all of one class.

        Raises:
            ValueError: If it is.
        """
        if len(np.unique(code_V)) < 2:
            msg = (
                f"{who}: needs two classes or more on the validation side of split "
                f"{self.chosen_on.split}; got one. Make it by inner_split, which spreads classes."
            )
            raise ValueError(msg)

    def take(self, who: str, name: str, values_N: Rows) -> NDArray[Any]:
        """The validation rows of an array or tensor that has one row for each row of the data.

        Raises:
            ValueError: If it has another number of rows.
        """
        values = array_of(values_N)
        if len(values) != self.n_all:
            msg = (
                f"{who}: {name} needs all {self.n_all} rows that the split was made from; got "
                f"{len(values)}. Give every row: those of the other sides are not read."
            )
            raise ValueError(msg)
        taken: NDArray[Any] = values[self.rows]
        return taken

    def weights(self, *, group_counts_once: bool) -> NDArray[np.float64]:
        """(V,) weights that sum to 1: equal for rows, or equal for groups."""
        if not group_counts_once:
            return np.full(len(self.rows), 1 / len(self.rows))
        _, code_V, count_G = np.unique(self.group_V, return_inverse=True, return_counts=True)
        return 1 / (count_G[code_V] * len(count_G))


def validation_side(who: str, split: Split, group_N: ArrayLike) -> ValidationSide:
    """The validation side of a split, no group of which is on another side.

    Raises:
        ValueError: If it is empty or a group is on two sides.
    """
    if not len(split.validation):
        msg = (
            f"{who}: needs a split with a validation side; split {split.name} has none. Make one "
            "inside its train side by inner_split; the test side chooses nothing."
        )
        raise ValueError(msg)
    split.refuse_cut_groups(group_N)
    group = labels_of(who, "groups", group_N)
    names = frozenset(group_name(name) for name in group[split.validation].tolist())
    return ValidationSide(
        rows=split.validation,
        group_V=group[split.validation],
        n_all=len(group),
        chosen_on=ChosenOn(
            split=split.name, n_rows=len(split.validation), n_groups=len(names), groups=names
        ),
    )


def score_table(who: str, name: str, values_NC: Rows, *, n_classes: int) -> NDArray[np.float64]:
    """Scores as a finite (N, C) float64 array.

    Raises:
        ValueError: If it has another shape, no row, or holds NaN or an infinity.
    """
    table = array_of(values_NC).astype(np.float64)
    if table.ndim != 2 or table.shape[1] != n_classes or not len(table):
        msg = (
            f"{who}: {name} needs one column for each of {n_classes} classes and a row or more; "
            f"got shape {table.shape}. Give class_C in the order of the columns."
        )
        raise ValueError(msg)
    bad = np.flatnonzero(~np.isfinite(table).all(axis=1))
    if len(bad):
        msg = (
            f"{who}: {name} needs finite numbers; got NaN or an infinity in {len(bad)} of "
            f"{len(table)} rows, the first is row {bad[0]} of them. Predict these rows again."
        )
        raise ValueError(msg)
    return table


def probability_table(
    who: str, name: str, values_NC: Rows, *, n_classes: int
) -> NDArray[np.float64]:
    """Probabilities as an (N, C) float64 array, >= 0, each row summing to 1 within 1e-3.

    Raises:
        ValueError: If they are none.
    """
    table = score_table(who, name, values_NC, n_classes=n_classes)
    bad = np.flatnonzero((table < 0).any(axis=1) | (np.abs(table.sum(axis=1) - 1) > 1e-3))
    if len(bad):
        msg = (
            f"{who}: {name} needs probabilities, >= 0 and 1 in sum; got "
            f"{np.round(table[bad[0]], 4).tolist()} in row {bad[0]}, and {len(bad)} such rows. "
            "Apply a softmax to logits first."
        )
        raise ValueError(msg)
    return table
