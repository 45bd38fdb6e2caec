"""Confidence intervals that resample groups (cases, patients), never tiles."""

# Shape suffixes: N tiles, G groups, C classes, R weightings of the groups (resamples).

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from anlage.probes.metrics.counts import GroupCounts, group_counts, mean_recall

CONFIDENCE = 0.95
FEWEST_RELIABLE_GROUPS = 20
BLOCK_WEIGHTS = 2**22

Metric = Literal["balanced_accuracy", "accuracy"]
Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A number with its 95 % intervals over groups.

    Attributes:
        estimate: The number on all groups.
        low: Lower end of the percentile bootstrap interval.
        high: Upper end of it.
        t_low: Lower end of the t-interval (jackknife over groups, G - 1 degrees of freedom).
        t_high: Upper end of it.
        n_groups: Groups (cases, patients) the intervals rest on.
        n_resamples: Bootstrap resamples drawn.
        n_short_of_a_class: Resamples in which a class had no tile; their balanced accuracy is the
            mean over the classes present.
        is_unreliable: Fewer than 20 groups: the bootstrap interval is too narrow, look at the
            t-interval, and claim little.
    """

    estimate: float
    low: float
    high: float
    t_low: float
    t_high: float
    n_groups: int
    n_resamples: int
    n_short_of_a_class: int
    is_unreliable: bool


def cluster_bootstrap(
    truth_N: ArrayLike,
    predicted_N: ArrayLike,
    group_N: ArrayLike,
    *,
    metric: Metric = "balanced_accuracy",
    n_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of a metric over groups, and a t-interval beside it.

    A resample draws G of the G groups with replacement, each with all its tiles.

    Args:
        truth_N: (N,) true labels.
        predicted_N: (N,) predicted labels.
        group_N: (N,) group of each tile; tiles of one group are not independent.
        metric: What is scored.
        n_resamples: Bootstrap resamples, 1 or more; 2,000 put about 0.5 % of noise on an end.
        seed: Of the resamples.

    Returns:
        The metric with its intervals, clipped to 0 to 1.

    Raises:
        ValueError: If lengths differ, or there are fewer than two groups.
    """
    counts = group_counts(truth_N, predicted_N, group_N)
    total_GC, correct_GC = class_counts(counts, metric)

    def score(weight_RG: NDArray[np.float64]) -> NDArray[np.float64]:
        return mean_recall(weight_RG @ correct_GC, weight_RG @ total_GC)

    return interval_over_groups(
        score, total_GC, n_resamples=n_resamples, seed=seed, bounds=(0.0, 1.0)
    )


def class_counts(
    counts: GroupCounts, metric: Metric
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Total and correct counts (G, C) under which the mean recall is the metric.

    Accuracy is the balanced accuracy of a task whose tiles are all of one class.
    """
    if metric not in get_args(Metric):
        msg = (
            f"intervals: metric needs to be one of {get_args(Metric)}; got {metric!r}. Choose one."
        )
        raise ValueError(msg)
    if metric == "accuracy":
        total_G1 = counts.total_GC.sum(axis=1, keepdims=True)
        return total_G1, counts.correct_GC.sum(axis=1, keepdims=True)
    return counts.total_GC, counts.correct_GC


def interval_over_groups(
    statistic: Statistic,
    total_GC: NDArray[np.float64],
    *,
    n_resamples: int,
    seed: int,
    bounds: tuple[float, float],
) -> Interval:
    """Bootstrap and jackknife any statistic that is a function of the groups' weights.

    Args:
        statistic: Maps (R, G) weights of the groups to (R,) values.
        total_GC: (G, C) tiles of each group and class, to count resamples short of a class.
        n_resamples: Bootstrap resamples, 1 or more.
        seed: Of the resamples.
        bounds: Range of the statistic, to which the t-interval is clipped.

    Raises:
        ValueError: If there are fewer than two groups or no resample is asked for.
    """
    n_groups = len(total_GC)
    if n_groups < 2 or n_resamples < 1:
        msg = (
            "intervals: an interval needs two groups and one resample or more; got "
            f"{n_groups} groups, {n_resamples} resamples. Test on tiles of more cases."
        )
        raise ValueError(msg)
    values, n_short = [], 0
    for weight_RG in resample_weights(n_groups, n_resamples=n_resamples, seed=seed):
        values.append(statistic(weight_RG))
        n_short += int(((weight_RG @ total_GC) == 0).any(axis=1).sum())
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(values), [tail, 1 - tail])
    estimate = float(statistic(np.ones((1, n_groups)))[0])
    half_width = _jackknife_half_width(statistic, n_groups)
    return Interval(
        estimate=estimate,
        low=float(low),
        high=float(high),
        t_low=max(estimate - half_width, bounds[0]),
        t_high=min(estimate + half_width, bounds[1]),
        n_groups=n_groups,
        n_resamples=n_resamples,
        n_short_of_a_class=n_short,
        is_unreliable=n_groups < FEWEST_RELIABLE_GROUPS,
    )


def resample_weights(
    n_groups: int, *, n_resamples: int, seed: int
) -> Iterator[NDArray[np.float64]]:
    """How often each group is drawn in each bootstrap resample, a block of resamples at a time.

    Resample r draws the groups ``default_rng(seed).integers(n_groups, size=(R, n_groups))[r]``.

    Yields:
        (r, G) float64 counts, each row sums to G; a block holds at most 4 million of them.
    """
    generator = np.random.default_rng(seed)
    n_block = max(1, BLOCK_WEIGHTS // n_groups)
    for start in range(0, n_resamples, n_block):
        n_rows = min(n_block, n_resamples - start)
        drawn = generator.integers(n_groups, size=(n_rows, n_groups))
        cell = np.arange(n_rows)[:, None] * n_groups + drawn
        counted = np.bincount(cell.ravel(), minlength=n_rows * n_groups)
        yield counted.reshape(n_rows, n_groups).astype(np.float64)


def _jackknife_half_width(statistic: Statistic, n_groups: int) -> float:
    """Half the 95 % t-interval from leaving out one group at a time.

    For a mean over groups of equal size it is the textbook t-interval of the groups' means.
    """
    values = []
    n_block = max(1, BLOCK_WEIGHTS // n_groups)
    for start in range(0, n_groups, n_block):
        weight_RG = np.ones((min(n_block, n_groups - start), n_groups))
        row = np.arange(len(weight_RG))
        weight_RG[row, start + row] = 0
        values.append(statistic(weight_RG))
    value_G = np.concatenate(values)
    deviation = np.sqrt((n_groups - 1) * value_G.var())
    return float(stdtrit(n_groups - 1, (1 + CONFIDENCE) / 2) * deviation)
