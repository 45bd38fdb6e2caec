"""Is one model better than another on the same rows? A difference, with intervals over groups."""

# Shape suffixes: N rows (tiles), R resamples, G groups (patients).

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from anlage.probes.checks import Rows
from anlage.probes.metrics.metric import Metric
from anlage.probes.uncertainty.bootstrap import Resampling, groups_of, interval_over_groups
from anlage.probes.uncertainty.columns import columns_of_two
from anlage.probes.uncertainty.interval import Interval, Method


def paired_bootstrap(
    metric: Metric,
    columns_a: Sequence[Rows],
    columns_b: Sequence[Rows],
    group_N: Rows,
    *,
    n_resamples: int = 2000,
    seed: int = 0,
    method: Method = "percentile",
    stratify: bool = True,
    confidence: float = 0.95,
) -> Interval:
    """Difference of a metric, model a minus model b, on the same rows and the same resamples.

    Both models are scored on each resample of the groups, so what makes a patient hard for both
    cancels; the interval is narrower than two separate ones suggest. Resamples are those of
    ``cluster_bootstrap``.

    Args:
        metric: What is scored.
        columns_a: Of the metric, for model a: ``(truth_N, predicted_a_N)``.
        columns_b: The same for model b; the first column is the same.
        group_N: (N,) group (patient) of each row.
        n_resamples: Bootstrap resamples, 1 or more.
        seed: Of the resamples.
        method: ``percentile``, or ``bca``, which says "different" of equal models too often where
            scores are ranked (docs/probes/uncertainty.md).
        stratify: Draw within strata of the classes, if the metric has classes.
        confidence: Of both intervals, 0 to 1.

    Returns:
        The difference with its intervals and ``p_value``: the smallest 1 - confidence whose
        bootstrap interval leaves out 0. An interval that holds 0 shows no difference.

    Raises:
        ValueError: If columns do not fit, the models have other first columns, there are fewer than
            two groups, or the metric has no value.
    """
    settings = Resampling(
        n_resamples=n_resamples,
        seed=seed,
        method=method,
        stratify=stratify and metric.takes_fractions,
        confidence=confidence,
    )
    a, b = columns_of_two("paired_bootstrap", metric, columns_a, columns_b)
    groups = groups_of("paired_bootstrap", group_N, a[0], has_classes=metric.has_classes)
    score_a = metric.over_groups(a, groups.code_N, groups.n_groups)
    score_b = metric.over_groups(b, groups.code_N, groups.n_groups)

    def difference(weight_RG: NDArray[np.float64]) -> NDArray[np.float64]:
        return score_a(weight_RG) - score_b(weight_RG)

    width = metric.bounds[1] - metric.bounds[0]
    return interval_over_groups(
        f"difference of {metric.name}",
        difference,
        groups,
        settings,
        bounds=(-width, width),
        is_difference=True,
    )
