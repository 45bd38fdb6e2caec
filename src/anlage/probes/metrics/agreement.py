"""Cohen's kappa: agreement beyond chance, of names or of grades with distances between them."""

# Shape suffixes: N rows (tiles), G groups (patients), C classes, R weightings of the groups.

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from anlage.probes.checks import labels_of
from anlage.probes.metrics.classification import coded_pair, truth_codes
from anlage.probes.metrics.group_sums import GroupSums, ratio
from anlage.probes.metrics.metric import Columns, Metric, Statistic

Weighting = Literal["none", "linear", "quadratic"]
MOST_CLASSES = 1000


def kappa_metric(
    name: str, *, weighting: Weighting, order_C: tuple[Any, ...] | None = None
) -> Metric:
    """Cohen's kappa: 1 - disagreement seen / disagreement expected of independent columns.

        kappa = 1 - sum_ij d_ij O_ij / sum_ij d_ij r_i c_j / n,   d = [i != j], |i - j| or (i - j)^2

    The distance is between the grades themselves, so it stays the same when a resample lacks a
    grade between two others. (scikit-learn takes places among the grades that occur, unless it is
    given all of them as ``labels``.)

    Args:
        name: As it stands in tables.
        weighting: ``none`` for classes without order.
        order_C: Classes from lowest to highest, one apart; without it grades need to be integers.

    Source: Cohen 1968, Psychological Bulletin 70:213.
    """

    def over_groups(columns: Columns, code_N: NDArray[np.int64], n_groups: int) -> Statistic:
        grade_C, true_N, guess_N = _graded(name, columns, weighting, order_C)
        distance_CC = _distance(grade_C, weighting)
        shape = (len(grade_C), n_groups)
        trues, guesses = (GroupSums(of_N, code_N, shape=shape) for of_N in (true_N, guess_N))
        seen = GroupSums(
            np.zeros_like(true_N),
            code_N,
            shape=(1, n_groups),
            value_N=distance_CC[true_N, guess_N],
        )

        def statistic(weight_RG: NDArray[np.float64]) -> NDArray[np.float64]:
            true_RC = trues.under(weight_RG)
            chance_R = ((true_RC @ distance_CC) * guesses.under(weight_RG)).sum(axis=1)
            total_R = true_RC.sum(axis=1)
            return 1 - ratio(seen.under(weight_RG)[:, 0] * total_R, chance_R)

        return statistic

    return Metric(
        name=name,
        columns=("truth", "predicted"),
        bounds=(-1.0, 1.0),
        has_classes=False,
        over_groups=over_groups,
    )


def _graded(
    name: str, columns: Columns, weighting: Weighting, order_C: tuple[Any, ...] | None
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Grades of the classes, and the class of each row in both columns."""
    truth = labels_of(name, "truth", columns[0])
    predicted = labels_of(name, "predicted", columns[1], n_rows=len(truth))
    if order_C is not None:
        truth, predicted = (truth_codes(labels, order_C) for labels in (truth, predicted))
    class_C, true_N, guess_N = coded_pair(name, truth, predicted)
    if weighting == "none":
        class_C = np.arange(len(class_C))
    if class_C.dtype.kind not in "biuf" or (class_C % 1 != 0).any():
        msg = (
            f"{name}: truth and predicted need grades that are integers; got labels such as "
            f"{class_C[:5].tolist()}, whose order would be a guess. "
            "Give the order: kappa_metric(name, weighting=..., order_C=(lowest, ..., highest))."
        )
        raise ValueError(msg)
    if not 2 <= len(class_C) <= MOST_CLASSES:
        msg = (
            f"{name}: needs 2 to {MOST_CLASSES} classes; got {len(class_C)}. "
            "Test on cases of other classes, or use a correlation for finer scales."
        )
        raise ValueError(msg)
    return class_C.astype(np.float64), true_N, guess_N


def _distance(grade_C: NDArray[np.float64], weighting: Weighting) -> NDArray[np.float64]:
    apart_CC = np.abs(grade_C[:, None] - grade_C)
    power = {"none": 0, "linear": 1, "quadratic": 2}[weighting]
    distance: NDArray[np.float64] = np.where(apart_CC > 0, apart_CC**power, 0.0)
    return distance


QUADRATIC_KAPPA = kappa_metric("quadratic_kappa", weighting="quadratic")
"""Kappa of integer grades with squared distances, as for ISUP and Gleason grades."""

LINEAR_KAPPA = kappa_metric("linear_kappa", weighting="linear")
"""Kappa of integer grades with absolute distances."""

COHEN_KAPPA = kappa_metric("cohen_kappa", weighting="none")
"""Kappa of classes without order."""
