"""What a metric is: a number of rows that can be recomputed under many weightings of groups."""

# Shape suffixes: N rows (tiles), G groups (patients), R weightings of the groups (resamples).

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anlage.probes.checks import Rows, array_of

Columns = tuple[NDArray[Any], ...]
Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Maps (R, G) weights of the groups to (R,) values: a row of group g counts weight[r, g] times. NaN
where the metric has no value under these weights (no positive left, nobody died)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """A metric of predictions, for estimates, intervals and tests alike.

    Attributes:
        name: As it stands in tables, such as ``balanced_accuracy``.
        columns: What ``over_groups`` takes, in order, each with N rows, such as
            ``("truth", "predicted")``. Resampling is stratified by the first unless told otherwise.
        bounds: Smallest and largest possible value.
        is_better_larger: False for errors, such as the Brier score.
        has_classes: The first column holds classes that count by themselves, however rare: a
            resample can run short of them, and is stratified by them. False also for metrics that
            weigh each row alike (accuracy, Brier), since how many rows a class has is then part of
            what varies.
        takes_fractions: Whether weights may be fractions, as those of stratified resamples are.
        over_groups: From the columns (numpy arrays), (N,) int64 codes of the rows' groups and the
            number of groups to a ``Statistic``. Checks the columns and refuses them by name, and
            refuses rows on which the metric has no value; counts once, so that thousands of
            weightings cost matrix products.
    """

    name: str
    columns: tuple[str, ...]
    bounds: tuple[float, float]
    is_better_larger: bool = True
    has_classes: bool = True
    takes_fractions: bool = True
    over_groups: Callable[[Columns, NDArray[np.int64], int], Statistic]

    def __call__(self, *columns: Rows) -> float:
        """The metric of these rows.

        Args:
            *columns: N rows each, arrays or tensors, in the order of ``columns``.

        Raises:
            ValueError: If a column is unusable, or the metric has no value on these rows.
        """
        arrays = self.arrays(*columns)
        code_N = np.zeros(len(arrays[0]), dtype=np.int64)
        return float(self.over_groups(arrays, code_N, 1)(np.ones((1, 1)))[0])

    def arrays(self, *columns: Rows) -> Columns:
        """The columns as numpy arrays, tensors brought to the CPU.

        Raises:
            ValueError: If there are more or fewer columns than the metric has, or one is a scalar.
        """
        arrays = tuple(array_of(column) for column in columns)
        if len(arrays) != len(self.columns):
            msg = (
                f"{self.name}: needs the columns {self.columns}; got {len(arrays)}. "
                "Give each of them once, in this order."
            )
            raise ValueError(msg)
        if any(array.ndim == 0 for array in arrays):
            msg = f"{self.name}: needs one value a row; got a single value. Give arrays of N rows."
            raise ValueError(msg)
        return arrays


def metric_of_rows(
    function: Callable[..., float],
    *,
    name: str,
    columns: tuple[str, ...],
    bounds: tuple[float, float] = (-np.inf, np.inf),
    is_better_larger: bool = True,
    has_classes: bool = False,
) -> Metric:
    """A metric from any function of rows, recomputed on the gathered rows of each resample.

    As slow as the function; for metrics that have no faster form, and for users' own. It gathers
    whole rows, so its resamples are never stratified.

    Args:
        function: Takes the columns, (N, ...) each, gives a number; on a resample it may raise
            ``ValueError`` or give NaN where it has no value.
        name: As it stands in tables.
        columns: Names of the arguments.
        bounds: Smallest and largest possible value.
        is_better_larger: Whether more is better.
        has_classes: Whether the first column holds classes.
    """

    def over_groups(arrays: Columns, code_N: NDArray[np.int64], n_groups: int) -> Statistic:
        order_N = np.argsort(code_N, kind="stable")
        sorted_N = code_N[order_N]

        def statistic(weight_RG: NDArray[np.float64]) -> NDArray[np.float64]:
            if (weight_RG % 1 != 0).any():
                msg = (
                    f"{name}: needs whole weights, since it repeats rows; got fractions. "
                    "Resample by counts, or write the metric over groups."
                )
                raise ValueError(msg)
            values = []
            for weight_G in weight_RG:
                rows = np.repeat(order_N, weight_G.astype(np.int64)[sorted_N])
                values.append(_value(function, tuple(array[rows] for array in arrays)))
            return np.array(values)

        function(*arrays)  # refuses here what it refuses, not in each resample
        return statistic

    return Metric(
        name=name,
        columns=columns,
        bounds=bounds,
        is_better_larger=is_better_larger,
        has_classes=has_classes,
        takes_fractions=False,
        over_groups=over_groups,
    )


def _value(function: Callable[..., float], arrays: Columns) -> float:
    try:
        return float(function(*arrays))
    except ValueError:
        return float("nan")
