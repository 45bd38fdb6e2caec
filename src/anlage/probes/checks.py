"""What every probe refuses before it does any work."""

# Shape suffixes: N rows (tiles), D embedding width.

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def finite_embeddings(
    who: str, name: str, embedding_ND: ArrayLike, *, dtype: type[np.floating[Any]] = np.float32
) -> NDArray[Any]:
    """Embeddings as a finite, non-empty (N, D) floating array.

    Args:
        who: Function that asks, for the message.
        name: Its argument, for the message.
        embedding_ND: (N, D), anything numpy can turn into numbers.
        dtype: Floating type of the result.

    Raises:
        ValueError: If the array is not 2-D, has no row or column, or holds NaN or an infinity.
    """
    with np.errstate(over="ignore"):  # too large for the type becomes inf, refused below
        array = np.asarray(embedding_ND, dtype=dtype)
    if array.ndim != 2 or 0 in array.shape:
        msg = (
            f"{who}: {name} needs a non-empty (N, D) array; got shape {array.shape}. "
            "Give one embedding a row, and at least one row on each side of the split."
        )
        raise ValueError(msg)
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        msg = (
            f"{who}: {name} needs finite numbers; got NaN or an infinity in {len(bad)} of "
            f"{len(array)} rows, the first is row {bad[0]}. Embed these tiles again, in float32."
        )
        raise ValueError(msg)
    return array


def labels_of(who: str, name: str, values: ArrayLike, *, n_rows: int) -> NDArray[Any]:
    """Labels, groups or folds as a 1-D array of one value a row.

    Raises:
        ValueError: If there is not exactly one value a row, or one is missing (NaN or None).
    """
    array = np.asarray(values)
    if array.shape != (n_rows,):
        msg = (
            f"{who}: {name} needs one value for each of {n_rows} rows; got shape {array.shape}. "
            "Check that rows were dropped from both or from neither."
        )
        raise ValueError(msg)
    missing = np.flatnonzero([value is None or value != value for value in array.tolist()])  # noqa: PLR0124
    if len(missing):
        msg = (
            f"{who}: {name} needs a value in each row; got none in {len(missing)} rows, "
            f"the first is row {missing[0]}. Label or drop these rows."
        )
        raise ValueError(msg)
    return array


def both_sides(
    who: str,
    train_ND: ArrayLike,
    train_label_N: ArrayLike,
    test_ND: ArrayLike,
    *,
    dtype: type[np.floating[Any]] = np.float32,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """The three arrays every classifier probe takes, checked against each other.

    Raises:
        ValueError: If an array is unusable, widths differ, or the train side has one class only.
    """
    train = finite_embeddings(who, "train", train_ND, dtype=dtype)
    test = finite_embeddings(who, "test", test_ND, dtype=dtype)
    label = labels_of(who, "train labels", train_label_N, n_rows=len(train))
    if train.shape[1] != test.shape[1]:
        msg = (
            f"{who}: train and test need embeddings of one width; got {train.shape[1]} and "
            f"{test.shape[1]}. Embed both sides with the same encoder and pooling."
        )
        raise ValueError(msg)
    classes = np.unique(label)
    if len(classes) < 2:
        msg = (
            f"{who}: the train side needs two classes or more; got only {classes[0]!r}. "
            "Choose a split that leaves cases of another class for training."
        )
        raise ValueError(msg)
    return train, label, test
