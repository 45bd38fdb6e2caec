"""Metrics of probabilities: calibration errors, Brier scores, log loss, and the curve to draw."""

# Shape suffixes: N rows (tiles), G groups (patients), C classes, B bins, R weightings of groups.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from anlage.probes.checks import Rows
from anlage.probes.metrics.group_sums import GroupSums, ratio
from anlage.probes.metrics.metric import Columns, Metric, Statistic
from anlage.probes.metrics.score_columns import binary_probability_columns, probability_columns

N_BINS = 15
Binning = Literal["width", "mass"]
Reading = Literal["top", "classwise"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ReliabilityCurve:
    """Confidence against accuracy, bin by bin; the table behind a reliability diagram.

    Attributes:
        edge_B1: (B + 1,) edges; bin b holds confidences in (edge[b], edge[b + 1]].
        n_B: (B,) int64 rows in each bin.
        confidence_B: (B,) mean confidence of the bin's rows, NaN for an empty bin.
        accuracy_B: (B,) share of the bin's rows predicted right, NaN for an empty bin.
    """

    edge_B1: NDArray[np.float64]
    n_B: NDArray[np.int64]
    confidence_B: NDArray[np.float64]
    accuracy_B: NDArray[np.float64]


def reliability_curve(
    truth_N: Rows, score_NC: Rows, *, n_bins: int = N_BINS, binning: Binning = "width"
) -> ReliabilityCurve:
    """Accuracy of the top class against the probability it was given.

    Args:
        truth_N: (N,) integers 0 to C - 1, the column of each row's class.
        score_NC: (N, C) probabilities.
        n_bins: B, 1 or more.
        binning: Bins of equal width, or of equally many rows.

    Raises:
        ValueError: If a column is unusable or there is no bin.
    """
    arrays = ECE.arrays(truth_N, score_NC)
    confidence_N, is_right_N = _top(*probability_columns("reliability_curve", arrays))
    edge_B1 = _edges("reliability_curve", confidence_N, n_bins=n_bins, binning=binning)
    bin_N = _bins(confidence_N, edge_B1)
    n_B, confidence_B, right_B = (
        np.bincount(bin_N, weights=value_N, minlength=len(edge_B1) - 1)
        for value_N in (np.ones(len(bin_N)), confidence_N, is_right_N)
    )
    return ReliabilityCurve(
        edge_B1=edge_B1,
        n_B=n_B.astype(np.int64),
        confidence_B=ratio(confidence_B, n_B),
        accuracy_B=ratio(right_B, n_B),
    )


def calibration_error_metric(
    name: str,
    *,
    n_bins: int = N_BINS,
    binning: Binning = "width",
    reading: Reading = "top",
    is_largest: bool = False,
) -> Metric:
    """A calibration error: how far confidence and accuracy lie apart in bins of confidence.

        ECE = sum_b n_b / n |accuracy_b - confidence_b|;   MCE = max_b of the same distance

    Bins are (low, high], an empty one adds nothing. Bins of equal mass are cut once, at the
    quantiles of all rows, and stay in all resamples. ``classwise`` is the mean over the columns of
    the ECE of each column's probability against its class (Nixon et al.'s SCE).

    Args:
        name: As it stands in tables.
        n_bins: B, 1 or more.
        binning: Bins of equal width, or of equally many rows.
        reading: The top class only, or each class.
        is_largest: MCE in place of ECE.

    Source: Guo et al. 2017, arXiv:1706.04599, equations 3 and 5; Nixon et al. 2019,
    arXiv:1904.01685. An ECE is biased upwards where bins hold few rows: compare equal N and B.
    """

    def over_groups(columns: Columns, code_N: NDArray[np.int64], n_groups: int) -> Statistic:
        truth_N, score_NC = probability_columns(name, columns)
        if reading == "top":
            pairs = [_top(truth_N, score_NC)]
        else:
            pairs = [
                (score_NC[:, c], (truth_N == c).astype(np.float64))
                for c in range(score_NC.shape[1])
            ]
        parts = []
        for confidence_N, is_right_N in pairs:
            edge_B1 = _edges(name, confidence_N, n_bins=n_bins, binning=binning)
            bin_N, shape = _bins(confidence_N, edge_B1), (len(edge_B1) - 1, n_groups)
            gap = GroupSums(bin_N, code_N, shape=shape, value_N=is_right_N - confidence_N)
            parts.append((gap, GroupSums(bin_N, code_N, shape=shape)))

        def statistic(weight_RG: NDArray[np.float64]) -> NDArray[np.float64]:
            n_R = parts[0][1].under(weight_RG).sum(axis=1)
            error_R = np.where(n_R > 0, 0.0, np.nan)
            for gap, count in parts:
                gap_RB, n_RB = np.abs(gap.under(weight_RG)), count.under(weight_RG)
                if is_largest:
                    error_R += (gap_RB / np.where(n_RB > 0, n_RB, 1)).max(axis=1)
                else:
                    error_R += gap_RB.sum(axis=1) / np.where(n_R > 0, n_R, 1)
            return error_R / len(parts)

        return statistic

    return _error_metric(name, (0.0, 1.0), over_groups)


def _error_metric(
    name: str,
    bounds: tuple[float, float],
    over_groups: Callable[[Columns, NDArray[np.int64], int], Statistic],
) -> Metric:
    return Metric(
        name=name,
        columns=("truth", "score"),
        bounds=bounds,
        is_better_larger=False,
        has_classes=False,
        over_groups=over_groups,
    )


def _top(
    truth_N: NDArray[np.int64], score_NC: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Probability of the top class (of equals the first), and 1 where it is the true one."""
    top_N = score_NC.argmax(axis=1)
    return score_NC[np.arange(len(top_N)), top_N], (top_N == truth_N).astype(np.float64)


def _edges(
    who: str, confidence_N: NDArray[np.float64], *, n_bins: int, binning: Binning
) -> NDArray[np.float64]:
    if n_bins < 1:
        msg = f"{who}: needs one bin or more; got {n_bins}. Use 15."
        raise ValueError(msg)
    share_B1 = np.linspace(0, 1, n_bins + 1)
    if binning == "width":
        return share_B1
    edge_B1: NDArray[np.float64] = np.unique(np.quantile(confidence_N, share_B1))
    return edge_B1 if len(edge_B1) > 1 else np.array([0.0, 1.0])


def _bins(confidence_N: NDArray[np.float64], edge_B1: NDArray[np.float64]) -> NDArray[np.int64]:
    bins = np.searchsorted(edge_B1, confidence_N, side="left") - 1
    return np.clip(bins, 0, len(edge_B1) - 2).astype(np.int64)


def _mean_metric(
    name: str, bounds: tuple[float, float], loss_of: Callable[[Columns], NDArray[np.float64]]
) -> Metric:
    """The mean over the rows of a loss of each row."""

    def over_groups(columns: Columns, code_N: NDArray[np.int64], n_groups: int) -> Statistic:
        loss_N = loss_of(columns)
        cell_N, shape = np.zeros_like(code_N), (1, n_groups)
        total = GroupSums(cell_N, code_N, shape=shape, value_N=loss_N)
        count = GroupSums(cell_N, code_N, shape=shape)
        return lambda weight_RG: ratio(total.under(weight_RG)[:, 0], count.under(weight_RG)[:, 0])

    return _error_metric(name, bounds, over_groups)


def _brier(columns: Columns) -> NDArray[np.float64]:
    positive_N, score_N = binary_probability_columns("brier", columns)
    loss: NDArray[np.float64] = (score_N - positive_N) ** 2
    return loss


def _brier_multiclass(columns: Columns) -> NDArray[np.float64]:
    truth_N, score_NC = probability_columns("brier_multiclass", columns)
    row_N = np.arange(len(truth_N))
    loss: NDArray[np.float64] = (score_NC**2).sum(axis=1) - 2 * score_NC[row_N, truth_N] + 1
    return np.maximum(loss, 0)


def _log_loss(columns: Columns) -> NDArray[np.float64]:
    given: NDArray[Any] = np.asarray(columns[1])
    if given.ndim == 1:
        positive_N, score_N = binary_probability_columns("log_loss", columns)
        chance_N = np.where(positive_N, score_N, 1 - score_N)
    else:
        truth_N, score_NC = probability_columns("log_loss", columns)
        chance_N = score_NC[np.arange(len(truth_N)), truth_N]
    eps = np.finfo(given.dtype).eps if given.dtype.kind == "f" else np.finfo(np.float64).eps
    loss: NDArray[np.float64] = -np.log(np.clip(chance_N, eps, 1 - eps))
    return loss


ECE = calibration_error_metric("ece")
"""Expected calibration error of the top class, 15 bins of equal width."""

ECE_EQUAL_MASS = calibration_error_metric("ece_equal_mass", binning="mass")
"""Expected calibration error of the top class, 15 bins of equally many rows."""

ECE_CLASSWISE = calibration_error_metric("ece_classwise", reading="classwise")
"""Mean over the classes of the calibration error of each column, 15 bins of equal width."""

MCE = calibration_error_metric("mce", is_largest=True)
"""Largest distance of a bin, 15 bins of equal width: that of the emptiest bin, as a rule."""

BRIER = _mean_metric("brier", (0.0, 1.0), _brier)
"""Mean squared distance of the probability of class 1 from a binary truth, 0 to 1."""

BRIER_MULTICLASS = _mean_metric("brier_multiclass", (0.0, 2.0), _brier_multiclass)
"""Mean of the squared distances summed over all classes, 0 to 2: of two classes, twice BRIER."""

LOG_LOSS = _mean_metric("log_loss", (0.0, np.inf), _log_loss)
"""Mean of -log of the probability of the true class, clipped by the dtype's epsilon as in
scikit-learn; (N, C) probabilities, or (N,) of class 1 beside a binary truth."""
