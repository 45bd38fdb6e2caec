"""Folds and sides of whole groups (patients) drawn by seed, with the classes spread over them."""

# Shape suffixes: N rows (tiles), G groups, C classes, K folds or sides.

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anlage.probes.checks import labels_of
from anlage.probes.splits.dealing import deal
from anlage.probes.splits.fixed import one_split_a_value
from anlage.probes.splits.split import Split, refuse_two_spellings

MOST_STARTS = 3
UNITS_DEALT_IN_ALL = 500  # above, one start comes out as even


def grouped_folds(
    label_N: ArrayLike,
    group_N: ArrayLike,
    *,
    n_folds: int,
    seed: int = 0,
    fewest_groups: int = 2,
) -> list[Split]:
    """Folds made of whole groups, with the classes spread over them as evenly as groups allow.

    Made even are the groups and the rows of each class, and groups and rows in all, all counting
    the same. Before that, no fold lacks a class that has groups enough. Folds follow from the
    sorted names of the groups, their labels and the seed, not from the order of rows.

    Args:
        label_N: (N,) classes; a group may have several. Give bins of a continuous label, or one
            value throughout where nothing is to be spread.
        group_N: (N,) groups.
        n_folds: Folds, 2 to the number of groups.
        seed: Of the order in which groups are dealt out.
        fewest_groups: Groups a class needs. A class of one group is tested without having been
            trained on; 1 accepts that.

    Returns:
        Splits named ``0`` to ``n_folds - 1``; each row is tested once.

    Raises:
        ValueError: If there are fewer groups than folds, or a class has too few groups.
    """
    who = "grouped_folds"
    return _folds(
        who, label_N, group_N, n_folds=n_folds, seed=(seed, 0), fewest_groups=fewest_groups
    )


def repeated_grouped_folds(
    label_N: ArrayLike,
    group_N: ArrayLike,
    *,
    n_folds: int,
    n_repeats: int,
    seed: int = 0,
    fewest_groups: int = 2,
) -> list[list[Split]]:
    """``grouped_folds`` dealt several times; the first is that of the same seed.

    Returns:
        One list of splits a repeat, named ``repeat 0 fold 0`` and so on. Scores of two repeats
        share all patients: they say how much the split matters, not how sure a score is.

    Raises:
        ValueError: If there is no repeat, or as in ``grouped_folds``.
    """
    who = "repeated_grouped_folds"
    if n_repeats < 1:
        msg = f"{who}: needs n_repeats >= 1; got {n_repeats}. Ask for one or more."
        raise ValueError(msg)
    repeats = [
        _folds(
            who, label_N, group_N, n_folds=n_folds, seed=(seed, repeat), fewest_groups=fewest_groups
        )
        for repeat in range(n_repeats)
    ]
    return [
        [
            Split(name=f"repeat {number} fold {split.name}", train=split.train, test=split.test)
            for split in splits
        ]
        for number, splits in enumerate(repeats)
    ]


def train_validation_test(
    label_N: ArrayLike,
    group_N: ArrayLike,
    *,
    validation: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
    fewest_groups: int = 2,
) -> Split:
    """One division of whole groups by shares, with the classes spread over the sides.

    Args:
        label_N: (N,) classes.
        group_N: (N,) groups.
        validation: Share of the validation side, 0 to below 1; 0 leaves it empty.
        test: Share of the test side, above 0; train gets what is left, which is above 0 too.
        seed: Of the order in which groups are dealt out.
        fewest_groups: Groups a class needs.

    Returns:
        The split, named ``test``.

    Raises:
        ValueError: If shares are no shares, or there are too few groups in all or in a class.
    """
    who = "train_validation_test"
    train = 1 - validation - test
    if not (train > 1e-9 and test > 0 and validation >= 0):
        msg = (
            f"{who}: needs test > 0, validation >= 0 and some train left; got test={test}, "
            f"validation={validation}. Give shares of 1, such as 0.2 and 0.1."
        )
        raise ValueError(msg)
    shares = [train, test, validation] if validation else [train, test]
    label, group = checked_columns(who, label_N, group_N, fewest_groups=fewest_groups)
    side = dealt_sides(who, label, group, shares=shares, seed=(seed, 0))
    return Split(
        name="test",
        train=np.flatnonzero(side == 0),
        test=np.flatnonzero(side == 1),
        validation=np.flatnonzero(side == 2),
    )


def checked_columns(
    who: str, label_N: ArrayLike, group_N: ArrayLike, *, fewest_groups: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Labels and groups, one a row, each class with groups enough.

    Raises:
        ValueError: If a column is unusable or a class has fewer than ``fewest_groups`` groups.
    """
    group = labels_of(who, "groups", group_N)
    refuse_two_spellings(who, group)
    label = labels_of(who, "labels", label_N, n_rows=len(group))
    for name in np.unique(label):
        n_groups = len(np.unique(group[label == name]))
        if n_groups < fewest_groups:
            msg = (
                f"{who}: each class needs {fewest_groups} groups (patients) or more, so that one "
                f"can train while another tests; got {n_groups} of class {str(name)!r}. Add "
                "patients, drop or merge the class, put a continuous label into bins, or accept "
                f"a class that is not on each side with fewest_groups={n_groups}."
            )
            raise ValueError(msg)
    return label, group


def dealt_sides(
    who: str,
    label_N: NDArray[Any],
    group_N: NDArray[Any],
    *,
    shares: list[float],
    seed: tuple[int, int],
) -> NDArray[np.int64]:
    """Side of each row, 0 to K - 1: whole groups dealt so that classes fall by the shares.

    Raises:
        ValueError: If there are fewer groups than sides.
    """
    name_G, code_N = np.unique(group_N, return_inverse=True)
    class_C, label_code_N = np.unique(label_N, return_inverse=True)
    if len(name_G) < len(shares):
        msg = (
            f"{who}: needs a group (patient) or more for each of {len(shares)} sides; got "
            f"{len(name_G)}. Add patients, or ask for fewer sides."
        )
        raise ValueError(msg)
    rows_GC = np.zeros((len(name_G), len(class_C)))
    np.add.at(rows_GC, (code_N, label_code_N), 1)
    all_G1 = np.ones((len(name_G), 1))
    columns_GQ = np.concatenate(
        [rows_GC > 0, rows_GC, all_G1, rows_GC.sum(axis=1, keepdims=True)], axis=1
    )
    bin_G = deal(
        columns_GQ / columns_GQ.sum(axis=0),
        np.asarray(shares, dtype=np.float64),
        np.random.default_rng(seed),
        spreads_first=True,
        n_starts=max(1, min(MOST_STARTS, UNITS_DEALT_IN_ALL // len(name_G))),
    )
    side_N: NDArray[np.int64] = bin_G[code_N]
    return side_N


def _folds(
    who: str,
    label_N: ArrayLike,
    group_N: ArrayLike,
    *,
    n_folds: int,
    seed: tuple[int, int],
    fewest_groups: int,
) -> list[Split]:
    group = labels_of(who, "groups", group_N)
    refuse_two_spellings(who, group)
    n_groups = len(np.unique(group))
    if not 2 <= n_folds <= n_groups:
        msg = (
            f"{who}: n_folds needs to be 2 to {n_groups}, the number of groups; "
            f"got {n_folds}. Ask for fewer folds."
        )
        raise ValueError(msg)
    label, group = checked_columns(who, label_N, group, fewest_groups=fewest_groups)
    fold = dealt_sides(who, label, group, shares=[1 / n_folds] * n_folds, seed=seed)
    return one_split_a_value(who, fold)
