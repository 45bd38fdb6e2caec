"""The labelled tiles that a run is watched on, refused before its first step if unfit for it."""

# Shape suffixes: N tiles, 3 channels, S pixels of an edge.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anlage.errors import LabelledDataError
from anlage.probes.checks import labels_of
from anlage.probes.splits.fixed import given_folds
from anlage.probes.splits.grouped import grouped_folds
from anlage.probes.splits.split import Split

MOST_FOLDS = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class WatchedTiles:
    """Tiles with labels and groups, in memory for the whole run: N * 3 * S * S bytes.

    Attributes:
        path: Where they are from; errors begin with it.
        pixels_N3SS: (N, 3, S, S) uint8 RGB, at the size and mpp of the encoder that is trained.
        label_N: (N,) class of each tile.
        group_N: (N,) group (patient or case) of each tile; a group is never split.
        fold_N: (N,) fold of each tile, each group in one; None to deal whole groups into folds.
        fingerprint: SHA-256 of what they are, for the record of the run.

    Raises:
        LabelledDataError: If there is not one label and one group a tile, there is only one class,
            or a class has one group, which cannot both train and test a probe.
        ValueError: If the pixels are not (N, 3, S, S) uint8.
    """

    path: Path
    pixels_N3SS: NDArray[np.uint8]
    label_N: NDArray[Any]
    group_N: NDArray[Any]
    fold_N: NDArray[Any] | None
    fingerprint: str

    def __post_init__(self) -> None:
        refuse_pixels("WatchedTiles", self.pixels_N3SS.shape, self.pixels_N3SS.dtype)
        columns = {"label": self.label_N, "group": self.group_N}
        if self.fold_N is not None:
            columns["fold"] = self.fold_N
        for name, values in columns.items():
            _refuse_gaps(self.path, name, values, n_tiles=len(self.pixels_N3SS))
        _refuse_lone_classes(self.path, self.label_N, self.group_N)

    def __len__(self) -> int:
        """How many tiles there are."""
        return len(self.pixels_N3SS)


def watched_splits(tiles: WatchedTiles, *, neighbours: int, seed: int = 0) -> list[Split]:
    """The folds that every look of a run probes on: those given, else up to five of whole groups.

    Args:
        tiles: The tiles.
        neighbours: k of the kNN probe, which each train side needs to have.
        seed: Of the order in which groups are dealt to folds.

    Returns:
        One split a fold; each tile is tested once.

    Raises:
        LabelledDataError: If a group is in two folds, or a fold leaves a train side with a class
            less or with fewer than ``neighbours`` tiles. Ask before the first step.
    """
    try:
        if tiles.fold_N is not None:
            splits = given_folds(tiles.fold_N, tiles.group_N)
        else:
            n_folds = min(MOST_FOLDS, len(np.unique(tiles.group_N)))
            splits = grouped_folds(tiles.label_N, tiles.group_N, n_folds=n_folds, seed=seed)
    except ValueError as error:
        raise LabelledDataError(tiles.path, str(error)) from error
    _refuse_poor_train_sides(tiles, splits, neighbours=neighbours)
    return splits


def shown_tiles(tiles: WatchedTiles, n: int = 4) -> NDArray[np.int64]:
    """Rows of a few tiles to draw in every look: the first of each class, then the second ...

    Args:
        tiles: The tiles.
        n: How many; all if there are fewer.

    Returns:
        Rising int64 rows.
    """
    label_N = np.asarray(tiles.label_N).astype(str)
    turn_N = np.zeros(len(label_N), dtype=np.int64)
    for name in np.unique(label_N):
        turn_N[label_N == name] = np.arange((label_N == name).sum())
    rows: NDArray[np.int64] = np.sort(np.lexsort((label_N, turn_N))[:n]).astype(np.int64)
    return rows


def refuse_pixels(who: str, shape: Sequence[int], dtype: object) -> None:
    """Refuse what is not a batch of square uint8 tiles.

    Raises:
        ValueError: If it is not.
    """
    is_tiles = len(shape) == 4 and shape[1] == 3 and shape[2] == shape[3] and 0 not in shape
    if not is_tiles or str(dtype).removeprefix("torch.") != "uint8":
        msg = (
            f"{who}: needs (N, 3, S, S) uint8 pixels; got shape {tuple(shape)}, {dtype}. "
            "Stack square RGB tiles of the encoder's tile_px, channels first."
        )
        raise ValueError(msg)


def _refuse_gaps(path: Path, name: str, values: NDArray[Any], *, n_tiles: int) -> None:
    remedy = f"Give a {name} for each tile, or drop the tile"
    try:
        array = labels_of("WatchedTiles", f"{name}s", values, n_rows=n_tiles)
    except ValueError as error:
        raise LabelledDataError(path, f"{error} {remedy}.") from error
    empty = np.flatnonzero([not str(value).strip() for value in array.tolist()])
    if len(empty):
        message = f"needs a {name} for each watched tile; got none for {len(empty)} of {n_tiles}"
        raise LabelledDataError(path, f"{message}, the first is tile {empty[0]}. {remedy}.")


def _refuse_lone_classes(path: Path, label_N: NDArray[Any], group_N: NDArray[Any]) -> None:
    classes = np.unique(label_N)
    if len(classes) < 2:
        message = f"needs watched tiles of two classes or more; got only {str(classes[0])!r}"
        raise LabelledDataError(path, f"{message}. Add tiles of another class.")
    for name in classes:
        groups = np.unique(group_N[label_N == name])
        if len(groups) < 2:
            message = (
                "needs two groups (patients) or more of each watched class, one to train and one "
                f"to test a probe; got one of class {str(name)!r}: {str(groups[0])!r}"
            )
            raise LabelledDataError(path, f"{message}. Add patients, or drop the class.")


def _refuse_poor_train_sides(
    tiles: WatchedTiles, splits: Sequence[Split], *, neighbours: int
) -> None:
    classes = set(tiles.label_N.tolist())
    for split in splits:
        lacking = sorted(map(str, classes - set(tiles.label_N[split.train].tolist())))
        if lacking:
            message = (
                f"needs each watched class outside each fold; got class {lacking[0]!r} only in "
                f"fold {split.name}"
            )
            raise LabelledDataError(
                tiles.path, f"{message}. Spread its patients over folds, or drop the class."
            )
        if not 1 <= neighbours <= len(split.train):
            message = (
                f"needs {neighbours} watched tiles or more to train on in each fold; got "
                f"{len(split.train)} outside fold {split.name}"
            )
            raise LabelledDataError(
                tiles.path, f"{message}. Add tiles, or set watch.neighbours={len(split.train)}."
            )
