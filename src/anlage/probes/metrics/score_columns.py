"""The columns of metrics that read scores, checked: truth as 0 and 1 or as columns of the score."""

# Shape suffixes: N rows (tiles), C classes.

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from anlage.probes.checks import labels_of
from anlage.probes.metrics.metric import Columns

SUM_TOLERANCE = 1e-3


def binary_columns(who: str, columns: Columns) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    """Whether each row is positive, and its score.

    Args:
        who: The metric, for messages.
        columns: (N,) truth, 0 and 1 or bool, with rows of both; (N,) finite scores.

    Raises:
        ValueError: If a column is something else.
    """
    truth = labels_of(who, "truth", columns[0])
    is_code = truth.dtype.kind in "biuf" and bool(np.isin(truth, (0, 1)).all())
    if not is_code:
        msg = (
            f"{who}: truth needs 0 and 1, or False and True; got the labels "
            f"{_first_labels(truth)}. Compare with the positive class first: truth == 'tumour'."
        )
        raise ValueError(msg)
    positive_N = truth.astype(bool)
    if positive_N.all() or not positive_N.any():
        msg = (
            f"{who}: truth needs positive and negative rows; got {int(positive_N.sum())} positive "
            f"of {len(truth)}. Test on cases of both classes."
        )
        raise ValueError(msg)
    score = np.asarray(columns[1])
    if score.shape != truth.shape:
        msg = (
            f"{who}: score needs one value for each of {len(truth)} rows; got shape {score.shape}. "
            "Give the score of the positive class, such as score[:, 1]."
        )
        raise ValueError(msg)
    return positive_N, _finite(who, score)


def class_columns(who: str, columns: Columns) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """The column of the score that each row's true class has, and the scores.

    Args:
        who: The metric, for messages.
        columns: (N,) truth, integers 0 to C - 1; (N, C) finite scores, C >= 2.

    Raises:
        ValueError: If a column is something else.
    """
    truth = labels_of(who, "truth", columns[0])
    score = np.asarray(columns[1])
    if score.ndim != 2 or len(score) != len(truth) or score.shape[1] < 2:
        msg = (
            f"{who}: score needs {len(truth)} rows with a column for each of two classes or more; "
            f"got shape {score.shape}. Give score_NC of a prediction."
        )
        raise ValueError(msg)
    n_classes = score.shape[1]
    is_code = truth.dtype.kind in "biuf" and bool(np.isin(truth, np.arange(n_classes)).all())
    if not is_code:
        msg = (
            f"{who}: truth needs the column of each row's class, 0 to {n_classes - 1}; got the "
            f"labels {_first_labels(truth)}. Code labels with truth_codes(truth, class_C)."
        )
        raise ValueError(msg)
    return truth.astype(np.int64), _finite(who, score)


def probability_columns(
    who: str, columns: Columns
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """As ``class_columns``, of scores that are probabilities.

    Raises:
        ValueError: If a score lies outside 0 to 1, or a row's sum is not 1 within 0.001.
    """
    code_N, score = class_columns(who, columns)
    score_NC = _in_unit_interval(who, score)
    sum_N = score_NC.sum(axis=1)
    off = np.flatnonzero(np.abs(sum_N - 1) > SUM_TOLERANCE)
    if len(off):
        msg = (
            f"{who}: score needs probabilities that sum to 1 in each row; got {sum_N[off[0]]:g} in "
            f"row {off[0]}, and {len(off)} such rows. Give probabilities of all classes."
        )
        raise ValueError(msg)
    return code_N, score_NC


def binary_probability_columns(
    who: str, columns: Columns
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """As ``binary_columns``, of scores that are probabilities.

    Raises:
        ValueError: If a score lies outside 0 to 1.
    """
    positive_N, score = binary_columns(who, columns)
    return positive_N, _in_unit_interval(who, score)


def _finite(who: str, score: NDArray[Any]) -> NDArray[Any]:
    if score.dtype.kind not in "biuf":
        msg = f"{who}: score needs numbers; got {score.dtype}. Give probabilities or logits."
        raise ValueError(msg)
    bad = np.flatnonzero(~np.isfinite(score).reshape(len(score), -1).all(axis=1))
    if len(bad):
        msg = (
            f"{who}: score needs finite numbers; got NaN or an infinity in {len(bad)} of "
            f"{len(score)} rows, the first is row {bad[0]}. Predict these rows again, in float32."
        )
        raise ValueError(msg)
    return score


def _in_unit_interval(who: str, score: NDArray[Any]) -> NDArray[np.float64]:
    low, high = float(score.min()), float(score.max())
    if low < 0 or high > 1 + SUM_TOLERANCE:
        msg = (
            f"{who}: score needs probabilities, 0 to 1; got {low:g} to {high:g}. "
            "Turn logits into probabilities first, by softmax or sigmoid."
        )
        raise ValueError(msg)
    return np.minimum(score.astype(np.float64), 1.0)


def _first_labels(truth: NDArray[Any]) -> list[Any]:
    labels: list[Any] = np.unique(truth)[:10].tolist()
    return labels
