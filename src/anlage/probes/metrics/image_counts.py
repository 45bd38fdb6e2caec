"""Metrics of counts: a row of the columns is an image, with counts of each class."""

# Shape suffixes: N images, C classes, G groups (patients), R weightings of the groups.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anlage.probes.metrics.group_sums import ratio
from anlage.probes.metrics.metric import Columns, Metric, Statistic

ClassScore = Callable[..., NDArray[np.float64]]
"""From one (..., C) array of counts a column to (..., C) scores, NaN where a class has none."""


def mean_of_pooled(name: str, columns: tuple[str, ...], score: ClassScore) -> Metric:
    """Counts are summed over all images, then scored by class; the mean over classes that have one.

    Args:
        name: As it stands in tables.
        columns: Names of the columns, (N,) or (N, C) counts each.
        score: Of each class, from its counts.
    """

    def over_groups(arrays: Columns, code_N: NDArray[np.int64], n_groups: int) -> Statistic:
        counts = _counts(name, columns, arrays)
        sums = [_by_group(count_NC, code_N, n_groups) for count_NC in counts]

        def statistic(weight_RG: NDArray[np.float64]) -> NDArray[np.float64]:
            return mean_of_defined(score(*(weight_RG @ sum_GC for sum_GC in sums)))

        _refuse_undefined(name, statistic(np.ones((1, n_groups))))
        return statistic

    return _metric(name, columns, over_groups)


def mean_of_images(name: str, columns: tuple[str, ...], score: ClassScore) -> Metric:
    """Each image is scored by class; the mean over its classes that have a score, then over images.

    An image without any score is left out.

    Args:
        name: As it stands in tables.
        columns: Names of the columns, (N,) or (N, C) counts each.
        score: Of each class, from its counts.
    """

    def over_groups(arrays: Columns, code_N: NDArray[np.int64], n_groups: int) -> Statistic:
        score_N1 = mean_of_defined(score(*_counts(name, columns, arrays)))[:, None]
        total_G1 = _by_group(np.nan_to_num(score_N1), code_N, n_groups)
        n_G1 = _by_group(np.isfinite(score_N1).astype(np.float64), code_N, n_groups)

        def statistic(weight_RG: NDArray[np.float64]) -> NDArray[np.float64]:
            return ratio((weight_RG @ total_G1)[:, 0], (weight_RG @ n_G1)[:, 0])

        _refuse_undefined(name, statistic(np.ones((1, n_groups))))
        return statistic

    return _metric(name, columns, over_groups)


def mean_of_defined(value_RC: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R,) mean over the classes whose value is not NaN; NaN where all are."""
    is_defined_RC = ~np.isnan(value_RC)
    total_R = np.where(is_defined_RC, value_RC, 0).sum(axis=-1)
    return ratio(total_R, is_defined_RC.sum(axis=-1))


def _metric(
    name: str,
    columns: tuple[str, ...],
    over_groups: Callable[[Columns, NDArray[np.int64], int], Statistic],
) -> Metric:
    return Metric(
        name=name, columns=columns, bounds=(0.0, 1.0), has_classes=False, over_groups=over_groups
    )


def _counts(name: str, columns: tuple[str, ...], arrays: Columns) -> list[NDArray[np.float64]]:
    """The columns as (N, C) float64, refused where they are no counts of one shape."""
    shape = arrays[0].shape
    for column, array in zip(columns, arrays, strict=True):
        is_numeric = array.dtype.kind in "iuf"
        if array.shape != shape or array.ndim not in {1, 2} or not array.size or not is_numeric:
            msg = (
                f"{name}: {column} needs counts of the images, (N,) or (N, classes) as "
                f"{columns[0]}; got {array.dtype} of shape {array.shape} beside {shape}. "
                "Give the columns of one count."
            )
            raise ValueError(msg)
        if not np.isfinite(array).all() or array.min() < 0:
            msg = f"{name}: {column} needs counts of 0 or more; got {array.min()}. Count again."
            raise ValueError(msg)
    return [array.reshape(len(array), -1).astype(np.float64) for array in arrays]


def _by_group(
    count_NC: NDArray[np.float64], code_N: NDArray[np.int64], n_groups: int
) -> NDArray[np.float64]:
    sum_GC = np.zeros((n_groups, count_NC.shape[1]))
    np.add.at(sum_GC, code_N, count_NC)
    return sum_GC


def _refuse_undefined(name: str, value: NDArray[Any]) -> None:
    if np.isnan(value).any():
        msg = (
            f"{name}: needs an image with something to score; got images where neither truth nor "
            "prediction holds anything, or nothing matches. Check the masks and their classes."
        )
        raise ValueError(msg)
