"""A metric averaged over folds, or over labels: again a metric, with intervals of its own.

Shape suffixes: N rows, L labels, G groups, R weightings.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anlage.probes.checks import labels_of
from anlage.probes.metrics.metric import Columns, Metric, Statistic


def mean_over_folds(metric: Metric) -> Metric:
    """The mean of a metric's values in the folds, each scored by itself.

    Scores of two models need not be comparable, so rows of two folds are never compared with each
    other. A fold in which the metric has no value (one class, no pair) is left out of the mean,
    under each weighting anew.

    Args:
        metric: Of the rows of one fold.

    Returns:
        A metric of its columns and ``fold``, (N,) of anything. It refuses rows without a value in
        any fold.
    """

    def over_groups(columns: Columns, code_N: NDArray[np.int64], n_groups: int) -> Statistic:
        *inner, fold_N = columns
        fold_N = labels_of(f"{metric.name}, mean over folds", "fold", fold_N, n_rows=len(inner[0]))
        row_sets = [np.flatnonzero(fold_N == fold) for fold in np.unique(fold_N)]
        return _mean(
            metric,
            [(tuple(column[rows] for column in inner), code_N[rows]) for rows in row_sets],
            n_groups,
        )

    return _like(metric, (*metric.columns, "fold"), over_groups, has_classes=metric.has_classes)


def mean_over_labels(metric: Metric) -> Metric:
    """The mean of a metric's values for several labels, each over the rows that have it.

    Labels without a value (all positive, say) are left out of the mean, under each weighting anew.

    Args:
        metric: Of two columns, (N,) truth and (N,) score or prediction of one label.

    Returns:
        A metric of ``(N, L)`` truth, NaN where a label is missing, and ``(N, L)`` scores. Its
        resamples are not stratified: rows have several labels.
    """

    def over_groups(columns: Columns, code_N: NDArray[np.int64], n_groups: int) -> Statistic:
        truth_NL, score_NL = (np.asarray(column) for column in columns)
        if truth_NL.ndim != 2 or truth_NL.shape != score_NL.shape:
            msg = (
                f"{metric.name}, mean over labels: needs truth and scores of one shape (N, L); got "
                f"{truth_NL.shape} and {score_NL.shape}. Give a column for each label."
            )
            raise ValueError(msg)
        row_sets = [np.flatnonzero(~np.isnan(truth_N)) for truth_N in truth_NL.T]
        return _mean(
            metric,
            [
                ((truth_NL[rows, label].astype(int), score_NL[rows, label]), code_N[rows])
                for label, rows in enumerate(row_sets)
                if len(rows)
            ],
            n_groups,
        )

    return _like(metric, metric.columns, over_groups, has_classes=False)


def _like(metric: Metric, columns: tuple[str, ...], over_groups: object, **changes: bool) -> Metric:
    return Metric(
        name=metric.name,
        columns=columns,
        bounds=metric.bounds,
        is_better_larger=metric.is_better_larger,
        takes_fractions=metric.takes_fractions,
        over_groups=over_groups,  # type: ignore[arg-type]
        **changes,
    )


def _mean(
    metric: Metric, parts: list[tuple[Columns, NDArray[np.int64]]], n_groups: int
) -> Statistic:
    statistics: list[Statistic] = []
    refusal: ValueError | None = None
    for columns, code_N in parts:
        try:
            statistics.append(metric.over_groups(columns, code_N, n_groups))
        except ValueError as error:
            refusal = error
    if not statistics:
        raise refusal or ValueError(f"{metric.name}: needs rows; got none.")

    def statistic(weight_RG: NDArray[np.float64]) -> NDArray[np.float64]:
        value_FR = np.stack([of_part(weight_RG) for of_part in statistics])
        is_known_FR = ~np.isnan(value_FR)
        total_R = np.where(is_known_FR, value_FR, 0).sum(axis=0)
        n_R = is_known_FR.sum(axis=0)
        mean_R: NDArray[np.float64] = np.where(n_R > 0, total_R / np.maximum(n_R, 1), np.nan)
        return mean_R

    return statistic
