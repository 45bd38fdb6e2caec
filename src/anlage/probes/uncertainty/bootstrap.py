"""Confidence intervals of any metric that resample groups (patients), never rows (tiles)."""

# Shape suffixes: N rows (tiles), G groups (patients), C classes, R weightings of the groups.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from anlage.probes.checks import Rows, labels_of
from anlage.probes.metrics.metric import Metric, Statistic
from anlage.probes.uncertainty.bca import BootstrapDistribution
from anlage.probes.uncertainty.columns import columns_of
from anlage.probes.uncertainty.interval import FEWEST_RELIABLE_GROUPS, Interval, Method
from anlage.probes.uncertainty.resampling import (
    class_counts,
    group_codes,
    jackknife_blocks,
    leave_out_weights,
    resample_weights,
    strata_of_classes,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Resampling:
    """How an interval is made; the settings of ``cluster_bootstrap``."""

    n_resamples: int = 2000
    seed: int = 0
    method: Method = "bca"
    stratify: bool = True
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            msg = (
                f"bootstrap: method needs to be one of {get_args(Method)}; got {self.method!r}. "
                "Choose one."
            )
            raise ValueError(msg)
        if self.n_resamples < 1 or not 0 < self.confidence < 1:
            msg = (
                "bootstrap: needs one resample or more and a confidence between 0 and 1; got "
                f"{self.n_resamples} resamples, confidence {self.confidence}. Use 2000 and 0.95."
            )
            raise ValueError(msg)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Groups:
    """The groups that are resampled.

    Attributes:
        code_N: (N,) int64 group of each row, 0 to G - 1.
        n_groups: G.
        count_GC: (G, C) rows of each class in each group; None for metrics without classes.
    """

    code_N: NDArray[np.int64]
    n_groups: int
    count_GC: NDArray[np.float64] | None

    def strata(self, *, stratify: bool) -> NDArray[np.int64]:
        """(G,) stratum of each group; all zero without classes or if not asked for."""
        if self.count_GC is None or not stratify:
            return np.zeros(self.n_groups, dtype=np.int64)
        return strata_of_classes(self.count_GC)


def cluster_bootstrap(
    metric: Metric,
    columns: Sequence[Rows],
    group_N: Rows,
    *,
    n_resamples: int = 2000,
    seed: int = 0,
    method: Method = "bca",
    stratify: bool = True,
    confidence: float = 0.95,
) -> Interval:
    """A metric with its bootstrap interval over groups, and a t-interval beside it.

    A resample draws groups with replacement, each with all its rows. With ``stratify`` they are
    drawn within strata of classes (which stratum a mixed group is in: ``strata_of_classes``; how:
    ``resample_weights``), so that no class vanishes; metrics without classes, and those that need
    whole rows (``metric_of_rows``), are resampled without strata. A group that is alone in its
    stratum always weighs 1: the interval is too narrow by what such groups would vary; they are
    counted.
    Ends are read at a confidence widened as a t-interval is (``BootstrapDistribution.widened``).
    Resamples in which a class vanishes all the same are counted, and kept if the metric has a value
    without it; those without a value are counted and left out. float64; weights of at most 4
    million groups in memory at a time, same draws for every size of block.

    Args:
        metric: What is scored.
        columns: Of the metric, in its order, N rows each: ``(truth_N, predicted_N)``.
        group_N: (N,) group of each row; rows of one group are not independent.
        n_resamples: Bootstrap resamples, 1 or more; 2,000 put about 0.5 % of noise on an end.
        seed: Of the resamples.
        method: ``bca`` corrects bias and skewness; ``percentile`` takes plain quantiles.
        stratify: Draw within strata of the classes in the first column, if the metric has classes.
        confidence: Of both intervals, 0 to 1.

    Returns:
        The metric with its intervals.

    Raises:
        ValueError: If columns do not fit, there are fewer than two groups, or the metric has no
            value on these rows or on no resample.
    """
    settings = Resampling(
        n_resamples=n_resamples,
        seed=seed,
        method=method,
        stratify=stratify and metric.takes_fractions,
        confidence=confidence,
    )
    arrays = columns_of("cluster_bootstrap", metric, columns)
    groups = groups_of("cluster_bootstrap", group_N, arrays[0], has_classes=metric.has_classes)
    statistic = metric.over_groups(arrays, groups.code_N, groups.n_groups)
    return interval_over_groups(metric.name, statistic, groups, settings, bounds=metric.bounds)


def groups_of(who: str, group_N: Rows, truth_N: NDArray[Any], *, has_classes: bool) -> Groups:
    """The groups of the rows and, where the first column holds classes, their classes.

    Raises:
        ValueError: If there is not one group a row, or fewer than two groups.
    """
    group_G, code_N = group_codes(who, group_N, len(truth_N))
    n_groups = len(group_G)
    count_GC = None
    if has_classes:
        count_GC = class_counts(labels_of(who, "truth", truth_N), code_N, n_groups)
    return Groups(code_N=code_N, n_groups=n_groups, count_GC=count_GC)


def interval_over_groups(
    name: str,
    statistic: Statistic,
    groups: Groups,
    settings: Resampling,
    *,
    bounds: tuple[float, float],
    is_difference: bool = False,
) -> Interval:
    """Bootstrap and jackknife any function of the groups' weights.

    Args:
        name: Of the number, for messages.
        statistic: Maps (R, G) weights of the groups to (R,) values.
        groups: What is resampled.
        settings: How.
        bounds: Range of the number, to which the t-interval is clipped.
        is_difference: Whether the number's being 0 is a question, answered by a p-value.

    Raises:
        ValueError: If the number has no value on these groups, or on no resample.
    """
    distribution, n_short = bootstrap_distribution(name, statistic, groups, settings)
    confidence = distribution.widened(settings.confidence)
    ends, used = distribution.percentile_ends(confidence), "percentile"
    if settings.method == "bca":
        bca = distribution.bca_ends(confidence)
        ends, used = (ends, used) if bca is None else (bca, "bca")
    t_ends = t_interval(
        distribution.estimate, distribution.leave_out_G, settings.confidence, bounds
    )
    is_bca = used == "bca"
    stratum_G = groups.strata(stratify=settings.stratify)
    _, size_S = np.unique(stratum_G, return_counts=True)
    return Interval(
        estimate=distribution.estimate,
        low=ends[0],
        high=ends[1],
        t_low=t_ends[0],
        t_high=t_ends[1],
        n_groups=groups.n_groups,
        n_resamples=settings.n_resamples,
        n_short_of_a_class=n_short,
        is_unreliable=groups.n_groups < FEWEST_RELIABLE_GROUPS,
        method="bca" if is_bca else "percentile",
        n_undefined=settings.n_resamples - len(distribution.value_R),
        n_always_drawn=int((size_S == 1).sum()),
        confidence=settings.confidence,
        p_value=distribution.p_value(is_bca=is_bca) if is_difference else None,
    )


def bootstrap_distribution(
    name: str, statistic: Statistic, groups: Groups, settings: Resampling
) -> tuple[BootstrapDistribution, int]:
    """Values of all resamples and of the jackknife, and how many resamples lacked a class.

    Raises:
        ValueError: If the number has no value on these groups, or on no resample.
    """
    estimate = float(statistic(np.ones((1, groups.n_groups)))[0])
    stratum_G = groups.strata(stratify=settings.stratify)
    values, n_short = [], 0
    blocks = resample_weights(
        groups.n_groups,
        n_resamples=settings.n_resamples if np.isfinite(estimate) else 0,
        seed=settings.seed,
        stratum_G=stratum_G,
    )
    for weight_RG in blocks:
        values.append(statistic(weight_RG))
        if groups.count_GC is not None:
            n_short += int(((weight_RG @ groups.count_GC) == 0).any(axis=1).sum())
    value_R = np.concatenate(values or [np.empty(0)])
    value_R = value_R[np.isfinite(value_R)]
    if not len(value_R):
        msg = (
            f"bootstrap: {name} needs to have a value on these rows; got {estimate}, and a value "
            "on no resample of them. Test on rows with cases of every class."
        )
        raise ValueError(msg)
    block_G = jackknife_blocks(stratum_G)
    leave_out = [statistic(weight_RG) for weight_RG in leave_out_weights(block_G)]
    distribution = BootstrapDistribution(
        value_R=value_R,
        estimate=estimate,
        leave_out_G=np.concatenate(leave_out),
        stratum_G=stratum_G[np.unique(block_G, return_index=True)[1]],
    )
    return distribution, n_short


def t_interval(
    estimate: float,
    leave_out_G: NDArray[np.float64],
    confidence: float,
    bounds: tuple[float, float],
) -> tuple[float, float]:
    """The t-interval from leaving out one group at a time, clipped to the range of the number.

    Above 2,000 groups, blocks of them are left out (``jackknife_blocks``), which count as groups
    here. For a mean over groups of equal size it is the textbook t-interval of the groups' means.
    Where the number has no value without some group (the only one with a positive), nothing is
    known of what that group does, and the interval is the whole range.
    """
    if not np.isfinite(leave_out_G).all():
        return bounds
    n_groups = len(leave_out_G)
    deviation = np.sqrt((n_groups - 1) * leave_out_G.var())
    half_width = float(stdtrit(n_groups - 1, (1 + confidence) / 2) * deviation)
    return max(estimate - half_width, bounds[0]), min(estimate + half_width, bounds[1])
