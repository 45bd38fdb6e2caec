"""Labelled rows that a run is watched on, be they tiles or slides: refused if unfit for probes."""

# Shape suffixes: N rows.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from anlage.errors import LabelledDataError
from anlage.probes.checks import labels_of
from anlage.probes.splits.fixed import given_folds
from anlage.probes.splits.grouped import grouped_folds
from anlage.probes.splits.split import Split

MOST_FOLDS = 5


class WatchedRows(Protocol):
    """Rows with labels and groups, in an order that stays the same."""

    @property
    def what(self) -> str:
        """What a row is: ``tile`` or ``slide``."""

    @property
    def path(self) -> Path:
        """Where they are from; errors begin with it."""

    @property
    def label_N(self) -> NDArray[Any]:  # noqa: N802 - a shape suffix
        """(N,) class of each."""

    @property
    def group_N(self) -> NDArray[Any]:  # noqa: N802 - a shape suffix
        """(N,) group (patient or case) of each; a group is never split."""

    @property
    def fold_N(self) -> NDArray[Any] | None:  # noqa: N802 - a shape suffix
        """(N,) fold of each, each group in one; None to deal whole groups into folds."""


def refuse_unfit_rows(rows: WatchedRows, *, n_rows: int) -> None:
    """Refuse rows that cannot be probed, whatever their folds.

    Raises:
        LabelledDataError: If there is not one label and one group a row, there is only one class,
            or a class has one group, which cannot both train and test a probe.
    """
    columns: Mapping[str, NDArray[Any]] = {"label": rows.label_N, "group": rows.group_N}
    if rows.fold_N is not None:
        columns = {**columns, "fold": rows.fold_N}
    for name, values in columns.items():
        _refuse_gaps(rows, name, values, n_rows=n_rows)
    _refuse_lone_classes(rows)


def watched_splits(rows: WatchedRows, *, neighbours: int, seed: int = 0) -> list[Split]:
    """The folds that every look of a run probes on: those given, else up to five of whole groups.

    Args:
        rows: The rows.
        neighbours: k of the kNN probe, which each train side needs to have.
        seed: Of the order in which groups are dealt to folds.

    Returns:
        One split a fold; each row is tested once.

    Raises:
        LabelledDataError: If a group is in two folds, or a fold leaves a train side with a class
            less or with fewer than ``neighbours`` rows. Ask before the first step.
    """
    try:
        if rows.fold_N is not None:
            splits = given_folds(rows.fold_N, rows.group_N)
        else:
            n_folds = min(MOST_FOLDS, len(np.unique(rows.group_N)))
            splits = grouped_folds(rows.label_N, rows.group_N, n_folds=n_folds, seed=seed)
    except ValueError as error:
        raise LabelledDataError(rows.path, str(error)) from error
    _refuse_poor_train_sides(rows, splits, neighbours=neighbours)
    return splits


def _refuse_gaps(rows: WatchedRows, name: str, values: NDArray[Any], *, n_rows: int) -> None:
    what = rows.what
    remedy = f"Give a {name} for each {what}, or drop the {what}"
    try:
        array = labels_of(f"Watched{what.capitalize()}s", f"{name}s", values, n_rows=n_rows)
    except ValueError as error:
        raise LabelledDataError(rows.path, f"{error} {remedy}.") from error
    empty = np.flatnonzero([not str(value).strip() for value in array.tolist()])
    if len(empty):
        message = f"needs a {name} for each watched {what}; got none for {len(empty)} of {n_rows}"
        raise LabelledDataError(rows.path, f"{message}, the first is {what} {empty[0]}. {remedy}.")


def _refuse_lone_classes(rows: WatchedRows) -> None:
    path, label_N, group_N = rows.path, rows.label_N, rows.group_N
    classes = np.unique(label_N)
    if len(classes) < 2:
        message = f"needs watched {rows.what}s of two classes or more; got only {str(classes[0])!r}"
        raise LabelledDataError(path, f"{message}. Add {rows.what}s of another class.")
    for name in classes:
        groups = np.unique(group_N[label_N == name])
        if len(groups) < 2:
            message = (
                "needs two groups (patients) or more of each watched class, one to train and one "
                f"to test a probe; got one of class {str(name)!r}: {str(groups[0])!r}"
            )
            raise LabelledDataError(path, f"{message}. Add patients, or drop the class.")


def _refuse_poor_train_sides(
    rows: WatchedRows, splits: Sequence[Split], *, neighbours: int
) -> None:
    classes = set(rows.label_N.tolist())
    for split in splits:
        lacking = sorted(map(str, classes - set(rows.label_N[split.train].tolist())))
        if lacking:
            message = (
                f"needs each watched class outside each fold; got class {lacking[0]!r} only in "
                f"fold {split.name}"
            )
            raise LabelledDataError(
                rows.path, f"{message}. Spread its patients over folds, or drop the class."
            )
        if not 1 <= neighbours <= len(split.train):
            message = (
                f"needs {neighbours} watched {rows.what}s or more to train on in each fold; got "
                f"{len(split.train)} outside fold {split.name}"
            )
            raise LabelledDataError(
                rows.path,
                f"{message}. Add {rows.what}s, or set watch.neighbours={len(split.train)}.",
            )
