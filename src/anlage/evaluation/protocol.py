"""Which tiles test which: the protocol, checked before anything is embedded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from anlage.errors import LabelledDataError
from anlage.evaluation.labelled_tiles import LabelledTiles
from anlage.evaluation.split_files import read_splits
from anlage.probes.splits.fixed import given_folds, leave_one_group_out, train_test
from anlage.probes.splits.grouped import grouped_folds
from anlage.probes.splits.split import Split

Protocol = Literal["auto", "leave-one-group-out", "folds", "grouped-folds", "train-test"]
MOST_GROUPS_LEFT_OUT_SINGLY = 100
N_FOLDS = 5


def chosen_protocol(tiles: LabelledTiles, protocol: Protocol) -> Protocol:
    """Resolve ``auto``: the folds given, else leave one group out, else five folds of groups.

    Leaving out one group at a time is for up to 100 groups; above, it costs much and gains little.
    """
    if protocol != "auto":
        return protocol
    if tiles.fold_N is not None:
        return "folds"
    n_groups = len(np.unique(tiles.group_N))
    return "leave-one-group-out" if n_groups <= MOST_GROUPS_LEFT_OUT_SINGLY else "grouped-folds"


def splits_of(tiles: LabelledTiles, protocol: Protocol, *, seed: int, k: int) -> list[Split]:
    """Splits of labelled tiles under a protocol, each one able to train both probes.

    Args:
        tiles: The tiles.
        protocol: How to split them.
        seed: Of the order in which groups are dealt to folds (``grouped-folds`` only).
        k: Neighbours the kNN probe will ask for.

    Raises:
        LabelledDataError: If the column the protocol needs is missing, a split trains on one class
            or on fewer than k tiles, or fewer than two groups are tested.
    """
    try:
        splits = _splits(tiles, chosen_protocol(tiles, protocol), seed)
    except ValueError as error:
        raise LabelledDataError(tiles.path, str(error)) from error
    _check(tiles, splits, k)
    return splits


def splits_of_file(tiles: LabelledTiles, path: str | Path, *, k: int) -> tuple[list[Split], str]:
    """Splits of labelled tiles from a table of patients (groups), each able to train both probes.

    Nothing is chosen on validation rows, so they train, as in UNI's protocol.

    Args:
        tiles: The tiles.
        path: Table of splits, as ``read_splits`` takes it; it names the tiles' groups.
        k: Neighbours the kNN probe will ask for.

    Returns:
        The splits, and the SHA-256 of the table.

    Raises:
        LabelledDataError: If the table cannot be used, tests a tile twice, or ``splits_of`` would
            refuse its splits.
    """
    read, sha256 = read_splits(path, tiles.group_N, tiles.group_N)
    splits = [_with_validation_rows(split) for split in read]
    n_tests_N = np.bincount(np.concatenate([split.test for split in splits]))
    if n_tests_N.max() > 1:
        group = tiles.group_N[n_tests_N.argmax()]
        message = f"needs to test each group once at most; got {n_tests_N.max()} tests of {group}"
        raise LabelledDataError(path, f"{message}. Evaluate each repetition by a table of its own.")
    _check(tiles, splits, k)
    return splits, sha256


def never_trained_on(tiles: LabelledTiles, splits: Sequence[Split]) -> list[str]:
    """Classes that are on the test side of a split whose train side lacks them."""
    lacking: set[str] = set()
    for split in splits:
        lacking |= set(tiles.label_N[split.test].tolist()) - set(
            tiles.label_N[split.train].tolist()
        )
    return sorted(lacking)


def _splits(tiles: LabelledTiles, protocol: Protocol, seed: int) -> list[Split]:
    if protocol == "leave-one-group-out":
        return leave_one_group_out(tiles.group_N)
    if protocol == "grouped-folds":
        n_folds = min(N_FOLDS, len(np.unique(tiles.group_N)))
        return grouped_folds(
            tiles.label_N,
            tiles.group_N,
            n_folds=n_folds,
            seed=seed,
            fewest_groups=1,  # a class of one case is told of in the notes
        )
    if protocol == "folds" and tiles.fold_N is not None:
        return given_folds(tiles.fold_N, tiles.group_N)
    if protocol == "train-test" and tiles.side_N is not None:
        return [_with_validation_rows(split) for split in train_test(tiles.side_N, tiles.group_N)]
    column = {"folds": "fold", "train-test": "split"}.get(protocol)
    msg = (
        f"protocol {protocol!r} needs a column {column!r} in the CSV; got none. "
        "Add it, or choose leave-one-group-out or grouped-folds."
    )
    raise ValueError(msg)


def _with_validation_rows(split: Split) -> Split:
    """The split with its validation rows on the train side."""
    train = np.sort(np.concatenate([split.train, split.validation]))
    return Split(name=split.name, train=train, test=split.test)


def _check(tiles: LabelledTiles, splits: Sequence[Split], k: int) -> None:
    for split in sorted(splits, key=lambda split: len(split.train)):
        classes = np.unique(tiles.label_N[split.train])
        if len(classes) < 2:
            message = f"needs two classes to train on; split {split.name} has {classes.tolist()}"
            raise LabelledDataError(tiles.path, f"{message}. Add cases, or choose other folds.")
        if not 1 <= k <= len(split.train):
            message = (
                f"needs k from 1 to the train tiles of each split; got k={k}, and "
                f"{len(split.train)} tiles in split {split.name}"
            )
            remedy = f"Ask for at most {len(split.train)} (--neighbours {len(split.train)})"
            raise LabelledDataError(tiles.path, f"{message}. {remedy}, or add tiles.")
    tested = {group for split in splits for group in tiles.group_N[split.test].tolist()}
    if len(tested) < 2:
        message = f"needs two {tiles.group_column}s or more to test on; got {len(tested)}"
        raise LabelledDataError(tiles.path, f"{message}. An interval needs several; add some.")
