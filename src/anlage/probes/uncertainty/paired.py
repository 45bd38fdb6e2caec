"""Is one model better than another on the same tiles? A difference, with intervals over groups."""

# Shape suffixes: N tiles, R resamples, G groups, C classes.

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anlage.probes.metrics.counts import group_counts, mean_recall
from anlage.probes.uncertainty.bootstrap import Interval, Metric, class_counts, interval_over_groups


def paired_bootstrap(
    truth_N: ArrayLike,
    predicted_a_N: ArrayLike,
    predicted_b_N: ArrayLike,
    group_N: ArrayLike,
    *,
    metric: Metric = "balanced_accuracy",
    n_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Difference of a metric, model a minus model b, on the same tiles and the same resamples.

    Both models are scored on each resample of the groups, so what makes a case hard for both
    cancels; the interval is narrower than two separate ones suggest.

    Args:
        truth_N: (N,) true labels.
        predicted_a_N: (N,) labels predicted by model a.
        predicted_b_N: (N,) labels predicted by model b.
        group_N: (N,) group (case, patient) of each tile.
        metric: What is scored.
        n_resamples: Bootstrap resamples, 1 or more.
        seed: Of the resamples.

    Returns:
        The difference with its intervals, -1 to 1. An interval that holds 0 shows no difference.

    Raises:
        ValueError: If lengths differ, or there are fewer than two groups.
    """
    total_GC, correct_a_GC = class_counts(group_counts(truth_N, predicted_a_N, group_N), metric)
    _, correct_b_GC = class_counts(group_counts(truth_N, predicted_b_N, group_N), metric)

    def difference(weight_RG: NDArray[np.float64]) -> NDArray[np.float64]:
        total_RC = weight_RG @ total_GC
        score_a_R = mean_recall(weight_RG @ correct_a_GC, total_RC)
        return score_a_R - mean_recall(weight_RG @ correct_b_GC, total_RC)

    return interval_over_groups(
        difference, total_GC, n_resamples=n_resamples, seed=seed, bounds=(-1.0, 1.0)
    )
