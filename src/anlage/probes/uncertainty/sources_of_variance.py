"""How much a score owes to the patients, to the seed and to the fold; never pooled into one."""

# Shape suffixes: N rows, S seeds, F folds, R weightings of the groups.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from anlage.probes.checks import Rows, labels_of
from anlage.probes.metrics.metric import Columns, Metric, Statistic
from anlage.probes.uncertainty.bootstrap import (
    Groups,
    Resampling,
    groups_of,
    interval_over_groups,
)
from anlage.probes.uncertainty.columns import columns_of, columns_of_two
from anlage.probes.uncertainty.interval import Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Values of one metric, of several seeds or folds.

    Attributes:
        values: The metric of each; NaN where it has none (a fold without a positive).
        mean: Of the values there are.
        std: Their standard deviation (n - 1); NaN for fewer than two.
    """

    values: tuple[float, ...]
    mean: float
    std: float

    def t_interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Interval of the mean over more seeds like these; NaN for a single value.

        Not for folds: they share training rows, and no interval from them is right.
        """
        n = len(self.values)
        if n < 2:
            return float("nan"), float("nan")
        half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * self.std / np.sqrt(n)
        return self.mean - half, self.mean + half


@dataclass(frozen=True, kw_only=True, slots=True)
class VarianceSources:
    """A score and three answers to "how sure?", each to a question of its own.

    Attributes:
        data: Mean of the metric over seeds, with intervals over patients: would other patients give
            another number?
        seeds: The metric of each seed on all rows: would training again?
        folds: The metric of each fold's rows, averaged over seeds: is some part harder? None
            without folds. Only a description: folds share training rows (Bengio and Grandvalet
            2004, JMLR 5:1089: no unbiased variance exists).
    """

    data: Interval
    seeds: Spread
    folds: Spread | None

    def in_words(self, *, n_digits: int = 3) -> str:
        """One line for each source."""
        lines = [f"patients: {self.data.in_words(n_digits=n_digits)}", self._seeds(n_digits)]
        if self.folds is not None:
            lines.append(self._folds(self.folds, n_digits))
        return "\n".join(lines)

    @staticmethod
    def _folds(folds: Spread, n_digits: int) -> str:
        n_without = int(np.isnan(folds.values).sum())
        if n_without == len(folds.values):
            return f"folds: none of {n_without} has a value on its own"
        low, high = np.nanmin(folds.values), np.nanmax(folds.values)
        without = f", {n_without} more without a value" if n_without else ""
        return (
            f"folds: {low:.{n_digits}f} to {high:.{n_digits}f} over "
            f"{len(folds.values) - n_without} folds{without}, standard deviation "
            f"{folds.std:.{n_digits}f} (no interval: they share training rows)"
        )

    def _seeds(self, n_digits: int) -> str:
        n = len(self.seeds.values)
        if n < 2:
            return "seeds: one only, so what training again would change is not known"
        low, high = self.seeds.t_interval(self.data.confidence)
        return (
            f"seeds: standard deviation {self.seeds.std:.{n_digits}f} over {n} seeds; mean "
            f"{100 * self.data.confidence:g} % within {low:.{n_digits}f} to {high:.{n_digits}f}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedComparison:
    """Two models with several seeds each, on the same rows.

    Attributes:
        data: Difference of the means over seeds, with intervals over patients and a p-value.
        seeds_a: Model a's metric of each seed.
        seeds_b: Model b's.
        seeds_low: Lower end of Welch's interval of the difference over seeds; NaN where a model has
            one seed.
        seeds_high: Upper end.
    """

    data: Interval
    seeds_a: Spread
    seeds_b: Spread
    seeds_low: float
    seeds_high: float

    @property
    def shows_a_difference(self) -> bool:
        """Enough patients, and all intervals leave 0 out: over patients (both), over seeds."""
        d = self.data
        ends = ((d.low, d.high), (d.t_low, d.t_high), (self.seeds_low, self.seeds_high))
        return not d.is_unreliable and all(low > 0 or high < 0 for low, high in ends)


def variance_sources(
    metric: Metric,
    columns_S: Sequence[Sequence[Rows]],
    group_N: Rows,
    *,
    fold_N: Rows | None = None,
    n_resamples: int = 2000,
    seed: int = 0,
) -> VarianceSources:
    """Score the predictions of several seeds and keep apart what made them differ.

    Args:
        metric: What is scored.
        columns_S: Of the metric, for each seed, on the same rows; the first column is the same.
        group_N: (N,) group (patient) of each row.
        fold_N: (N,) fold whose test side each row was on; None if there was one split.
        n_resamples: Of the patients; all seeds are scored on each, and averaged.
        seed: Of the resamples.

    Raises:
        ValueError: If no seed is given, or as ``cluster_bootstrap``.
    """
    who = "variance_sources"
    columns = _same_rows(who, metric, columns_S)
    groups = groups_of(who, group_N, columns[0][0], has_classes=metric.has_classes)
    settings = Resampling(n_resamples=n_resamples, seed=seed, stratify=metric.takes_fractions)
    mean = _mean_over_seeds(metric, columns, groups)
    data = interval_over_groups(metric.name, mean, groups, settings, bounds=metric.bounds)
    folds = None
    if fold_N is not None:
        fold = labels_of(who, "folds", fold_N, n_rows=len(columns[0][0]))
        folds = _spread([_score(metric, columns, fold == name) for name in np.unique(fold)])
    return VarianceSources(
        data=data, seeds=_spread([metric(*arrays) for arrays in columns]), folds=folds
    )


def compare_over_seeds(
    metric: Metric,
    columns_a_S: Sequence[Sequence[Rows]],
    columns_b_S: Sequence[Sequence[Rows]],
    group_N: Rows,
    *,
    n_resamples: int = 2000,
    seed: int = 0,
) -> SeedComparison:
    """Difference of two models, model a minus model b, each trained from several seeds.

    Patients are paired (both models are scored on the same resamples); seeds are not (seed 3 of one
    model has nothing to do with seed 3 of the other), so theirs is Welch's interval.

    Args:
        metric: What is scored.
        columns_a_S: Of the metric, for each seed of model a.
        columns_b_S: The same for model b, of which there may be more or fewer.
        group_N: (N,) group (patient) of each row.
        n_resamples: Of the patients.
        seed: Of the resamples.

    Raises:
        ValueError: If no seed is given, or as ``paired_bootstrap``.
    """
    who = "compare_over_seeds"
    a, b = _same_rows(who, metric, columns_a_S), _same_rows(who, metric, columns_b_S)
    columns_of_two(who, metric, a[0], b[0])
    groups = groups_of(who, group_N, a[0][0], has_classes=metric.has_classes)
    score_a, score_b = (_mean_over_seeds(metric, columns, groups) for columns in (a, b))

    def difference(weight_RG: NDArray[np.float64]) -> NDArray[np.float64]:
        return score_a(weight_RG) - score_b(weight_RG)

    width = metric.bounds[1] - metric.bounds[0]
    data = interval_over_groups(
        f"difference of {metric.name}",
        difference,
        groups,
        Resampling(
            n_resamples=n_resamples,
            seed=seed,
            method="percentile",
            stratify=metric.takes_fractions,
        ),
        bounds=(-width, width),
        is_difference=True,
    )
    seeds_a, seeds_b = (_spread([metric(*c) for c in columns]) for columns in (a, b))
    low, high = _welch(seeds_a, seeds_b)
    return SeedComparison(
        data=data, seeds_a=seeds_a, seeds_b=seeds_b, seeds_low=low, seeds_high=high
    )


def _same_rows(who: str, metric: Metric, columns_S: Sequence[Sequence[Rows]]) -> list[Columns]:
    if not len(columns_S):
        msg = f"{who}: needs the predictions of one seed or more; got none. Train the probe."
        raise ValueError(msg)
    first = columns_of(who, metric, columns_S[0])
    return [first, *(columns_of_two(who, metric, first, other)[1] for other in columns_S[1:])]


def _mean_over_seeds(metric: Metric, columns_S: list[Columns], groups: Groups) -> Statistic:
    statistics = [metric.over_groups(c, groups.code_N, groups.n_groups) for c in columns_S]

    def mean(weight_RG: NDArray[np.float64]) -> NDArray[np.float64]:
        total = sum(statistic(weight_RG) for statistic in statistics)
        return np.asarray(total, dtype=np.float64) / len(statistics)

    return mean


def _score(metric: Metric, columns_S: list[Columns], rows: NDArray[np.bool_]) -> float:
    try:
        values = [metric(*(column[rows] for column in arrays)) for arrays in columns_S]
    except ValueError:  # these rows lack what the metric needs; all rows together had it
        return float("nan")
    return float(np.mean(values))


def _spread(values: list[float]) -> Spread:
    known = [value for value in values if not np.isnan(value)]
    std = float(np.std(known, ddof=1)) if len(known) > 1 else float("nan")
    mean = float(np.mean(known)) if known else float("nan")
    return Spread(values=tuple(values), mean=mean, std=std)


def _welch(a: Spread, b: Spread) -> tuple[float, float]:
    if min(len(a.values), len(b.values)) < 2:
        return float("nan"), float("nan")
    if a.std == b.std == 0:
        return a.mean - b.mean, a.mean - b.mean
    ends = stats.ttest_ind(a.values, b.values, equal_var=False).confidence_interval()
    return float(ends.low), float(ends.high)
