"""The columns of one model, or of two on the same rows, checked before any resample is drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from anlage.probes.checks import Rows, array_of
from anlage.probes.metrics.metric import Columns, Metric


def columns_of(who: str, metric: Metric, columns: Sequence[Rows]) -> Columns:
    """Columns as arrays: as many as the metric takes, of one length.

    Raises:
        ValueError: If their number or their lengths are wrong, or there is no row.
    """
    arrays = tuple(array_of(column) for column in columns)
    if len(arrays) != len(metric.columns):
        msg = (
            f"{who}: {metric.name} needs the columns {', '.join(metric.columns)}; got "
            f"{len(arrays)} columns. Give them in this order."
        )
        raise ValueError(msg)
    if any(array.ndim == 0 or len(array) == 0 for array in arrays):
        msg = f"{who}: {metric.name} needs one row or more; got none. Check the test side."
        raise ValueError(msg)
    for name, array in zip(metric.columns, arrays, strict=True):
        if len(array) != len(arrays[0]):
            msg = (
                f"{who}: {name} needs one value for each of {len(arrays[0])} rows; got shape "
                f"{array.shape}. Check that rows were dropped from all columns or from none."
            )
            raise ValueError(msg)
    return arrays


def columns_of_two(
    who: str, metric: Metric, columns_a: Sequence[Rows], columns_b: Sequence[Rows]
) -> tuple[Columns, Columns]:
    """Columns of two models on the same rows, which share the first column.

    Raises:
        ValueError: If either is wrong, or the first columns are not the same.
    """
    a, b = columns_of(who, metric, columns_a), columns_of(who, metric, columns_b)
    has_gaps = a[0].dtype.kind == b[0].dtype.kind == "f"  # labels that some rows lack
    if not np.array_equal(a[0], b[0], equal_nan=has_gaps):
        msg = (
            f"{who}: {metric.columns[0]} needs to be the same for both models; got different "
            f"values or lengths ({len(a[0])} and {len(b[0])} rows). Put both models' predictions "
            "in the order of the same rows."
        )
        raise ValueError(msg)
    return a, b
