"""How well numbers are predicted: Pearson, Spearman, R2 and errors, of one target or many."""

# Shape suffixes: N rows, G groups, R weightings, T targets, K block of weightings.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anlage.probes.metrics.metric import Columns, Metric, Statistic

NAMES = ("truth", "predicted")
CONSTANT = 1e-12
BLOCK_VALUES = 4_000_000

Floats = NDArray[np.float64]


def pearson_of_targets(truth_NT: ArrayLike, predicted_NT: ArrayLike) -> Floats:
    """(T,) Pearson's correlation of each target; NaN where truth or prediction is constant.

    Raises:
        ValueError: If the arrays differ in shape, are empty or not finite.
    """
    return _of_targets(_pearson_over, "pearson_of_targets", (truth_NT, predicted_NT))


def spearman_of_targets(truth_NT: ArrayLike, predicted_NT: ArrayLike) -> Floats:
    """(T,) Spearman's correlation of each target; NaN where truth or prediction is constant.

    Raises:
        ValueError: If the arrays differ in shape, are empty or not finite.
    """
    return _of_targets(_spearman_over, "spearman_of_targets", (truth_NT, predicted_NT))


def r2_of_targets(truth_NT: ArrayLike, predicted_NT: ArrayLike) -> Floats:
    """(T,) share of the variance of each target that is predicted; NaN where truth is constant.

    Raises:
        ValueError: If the arrays differ in shape, are empty or not finite.
    """
    return _of_targets(_r2_over, "r2_of_targets", (truth_NT, predicted_NT))


def _pearson_over(
    truth_NT: Floats, predicted_NT: Floats, code_N: NDArray[np.int64], n_groups: int
) -> Statistic:
    truth, predicted = truth_NT - truth_NT.mean(axis=0), predicted_NT - predicted_NT.mean(axis=0)
    products = (truth, predicted, truth**2, predicted**2, truth * predicted)
    sums = [_group_sums(product, code_N, n_groups) for product in products]
    count_G = np.bincount(code_N, minlength=n_groups).astype(np.float64)

    def statistic(weight_RG: Floats) -> Floats:
        count_R1 = (weight_RG @ count_G)[:, None]
        x, y, xx, yy, xy = (weight_RG @ sums_GT for sums_GT in sums)
        with np.errstate(invalid="ignore", divide="ignore"):
            return _correlation(x / count_R1, y / count_R1, [s / count_R1 for s in (xx, yy, xy)])

    return statistic


def _spearman_over(
    truth_NT: Floats, predicted_NT: Floats, code_N: NDArray[np.int64], n_groups: int
) -> Statistic:
    ranked = [
        (_runs(truth_N), _runs(predicted_N))
        for truth_N, predicted_N in zip(truth_NT.T, predicted_NT.T, strict=True)
    ]
    n_block = max(1, BLOCK_VALUES // len(truth_NT))

    def statistic(weight_RG: Floats) -> Floats:
        values = []
        for first in range(0, len(weight_RG), n_block):
            weight_KN = weight_RG[first : first + n_block][:, code_N]
            columns = [_rank_correlation(weight_KN, *pair) for pair in ranked]
            values.append(np.stack(columns, axis=1))
        return np.concatenate(values)

    return statistic


def _r2_over(
    truth_NT: Floats, predicted_NT: Floats, code_N: NDArray[np.int64], n_groups: int
) -> Statistic:
    truth = truth_NT - truth_NT.mean(axis=0)
    products = (truth, truth**2, (truth_NT - predicted_NT) ** 2)
    sums = [_group_sums(product, code_N, n_groups) for product in products]
    count_G = np.bincount(code_N, minlength=n_groups).astype(np.float64)

    def statistic(weight_RG: Floats) -> Floats:
        y, yy, error = (weight_RG @ sums_GT for sums_GT in sums)
        with np.errstate(invalid="ignore", divide="ignore"):
            spread = yy - y**2 / (weight_RG @ count_G)[:, None]
            varies = spread > CONSTANT * yy
            r2: Floats = np.where(varies, 1 - error / spread, np.nan)
        return r2

    return statistic


def _mean_error(of_gap: Callable[[Floats], Floats]) -> Callable[..., Statistic]:
    def over_groups(
        truth_NT: Floats, predicted_NT: Floats, code_N: NDArray[np.int64], n_groups: int
    ) -> Statistic:
        sums_GT = _group_sums(of_gap(truth_NT - predicted_NT), code_N, n_groups)
        count_G = np.bincount(code_N, minlength=n_groups).astype(np.float64)

        def statistic(weight_RG: Floats) -> Floats:
            with np.errstate(invalid="ignore"):
                mean: Floats = (weight_RG @ sums_GT) / (weight_RG @ count_G)[:, None]
            return mean

        return statistic

    return over_groups


def _metric(
    name: str,
    of_targets: Callable[..., Statistic],
    *,
    bounds: tuple[float, float],
    is_better_larger: bool = True,
) -> Metric:
    def over_groups(columns: Columns, code_N: NDArray[np.int64], n_groups: int) -> Statistic:
        per_target = of_targets(*_checked(name, columns), code_N, n_groups)
        return lambda weight_RG: per_target(weight_RG).mean(axis=1)

    return Metric(
        name=name,
        columns=NAMES,
        bounds=bounds,
        is_better_larger=is_better_larger,
        has_classes=False,
        over_groups=over_groups,
    )


PEARSON = _metric("pearson", _pearson_over, bounds=(-1.0, 1.0))
"""Mean over targets of Pearson's correlation; columns (N,) or (N, T).

As in HEST-Bench, one target whose truth or prediction is constant makes the mean NaN: to leave it
out would reward a probe for saying nothing where it is hard. ``pearson_of_targets`` tells which."""

SPEARMAN = _metric("spearman", _spearman_over, bounds=(-1.0, 1.0))
"""Mean over targets of Spearman's correlation, ties at their middle rank; NaN rule of ``PEARSON``.

Ranks are taken anew in each resample, by running sums over rows sorted once."""

R2 = _metric("r2", _r2_over, bounds=(-np.inf, 1.0))
"""Mean over targets of 1 - squared error / variance; NaN where the truth of a target is constant
(scikit-learn gives 0 or 1 there)."""

MEAN_ABSOLUTE_ERROR = _metric(
    "mean_absolute_error", _mean_error(np.abs), bounds=(0.0, np.inf), is_better_larger=False
)
"""Mean over rows and targets of |truth - predicted|, in the unit of the target."""

MEAN_SQUARED_ERROR = _metric(
    "mean_squared_error", _mean_error(np.square), bounds=(0.0, np.inf), is_better_larger=False
)
"""Mean over rows and targets of (truth - predicted)^2, in the squared unit of the target."""


def _of_targets(
    over_groups: Callable[..., Statistic], who: str, columns: tuple[ArrayLike, ArrayLike]
) -> Floats:
    truth, predicted = _checked(who, tuple(np.asarray(column) for column in columns))
    code_N = np.zeros(len(truth), dtype=np.int64)
    values: Floats = over_groups(truth, predicted, code_N, 1)(np.ones((1, 1)))[0]
    return values


def _checked(who: str, columns: Columns) -> tuple[Floats, Floats]:
    """Both columns as (N, T) float64."""
    truth, predicted = (np.asarray(column, dtype=np.float64) for column in columns)
    if truth.ndim not in {1, 2} or truth.shape != predicted.shape or not truth.size:
        msg = (
            f"{who}: truth and predicted need one non-empty shape, (N,) or (N, T); got "
            f"{truth.shape} and {predicted.shape}. Check that rows were dropped from both."
        )
        raise ValueError(msg)
    for name, column in (("truth", truth), ("predicted", predicted)):
        if not np.isfinite(column).all():
            msg = (
                f"{who}: {name} needs finite numbers; got {int((~np.isfinite(column)).sum())} "
                "that are NaN or infinite. Drop these rows from both columns."
            )
            raise ValueError(msg)
    return truth.reshape(len(truth), -1), predicted.reshape(len(truth), -1)


def _group_sums(value_NT: Floats, code_N: NDArray[np.int64], n_groups: int) -> Floats:
    sums = [np.bincount(code_N, weights=value_N, minlength=n_groups) for value_N in value_NT.T]
    return np.stack(sums, axis=1)


def _correlation(mean_x: Floats, mean_y: Floats, second: list[Floats]) -> Floats:
    """Correlation from means and second moments; NaN where a spread is lost in rounding."""
    xx, yy, xy = second
    spread_x, spread_y = xx - mean_x**2, yy - mean_y**2
    varies = (spread_x > CONSTANT * xx) & (spread_y > CONSTANT * yy)
    correlation = (xy - mean_x * mean_y) / np.sqrt(np.where(varies, spread_x * spread_y, np.nan))
    clipped: Floats = np.clip(correlation, -1, 1)
    return clipped


@dataclass(frozen=True, slots=True, eq=False)
class _Runs:
    """A column sorted once: runs of equal values, so that ranks under weights are running sums."""

    order_N: NDArray[np.int64]
    start_U: NDArray[np.int64]
    run_N: NDArray[np.int64]

    def centred_ranks(self, weight_KN: Floats) -> Floats:
        """(K, N) middle rank of each row less the mean rank, a row counting weight times."""
        weight_KU = np.add.reduceat(weight_KN[:, self.order_N], self.start_U, axis=1)
        below_KU = weight_KU.cumsum(axis=1)
        middle_KU = below_KU - weight_KU / 2 - below_KU[:, -1:] / 2
        ranks: Floats = middle_KU[:, self.run_N]
        return ranks


def _runs(value_N: Floats) -> _Runs:
    _, run_N = np.unique(value_N, return_inverse=True)
    order_N = np.argsort(run_N, kind="stable")
    start_U = np.searchsorted(run_N[order_N], np.arange(run_N.max() + 1))
    return _Runs(order_N, start_U, run_N)


def _rank_correlation(weight_KN: Floats, truth: _Runs, predicted: _Runs) -> Floats:
    x_KN, y_KN = truth.centred_ranks(weight_KN), predicted.centred_ranks(weight_KN)
    xx, yy, xy = (
        np.einsum("kn,kn,kn->k", weight_KN, *pair)
        for pair in ((x_KN, x_KN), (y_KN, y_KN), (x_KN, y_KN))
    )
    varies = (xx > 0) & (yy > 0)
    correlation: Floats = np.clip(xy / np.sqrt(np.where(varies, xx * yy, np.nan)), -1, 1)
    return correlation
