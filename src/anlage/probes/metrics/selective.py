"""Selective prediction: how right the rows are that a model is sure of."""

# Shape suffixes: N rows (tiles), G groups (patients), K distinct confidences, R weightings.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma

from anlage.probes.checks import Rows, labels_of
from anlage.probes.metrics.classification import refuse_mixed
from anlage.probes.metrics.group_sums import GroupSums, blocks_of_weights, ratio
from anlage.probes.metrics.metric import Columns, Metric, Statistic

COLUMNS = ("truth", "predicted", "confidence")
TIE = 1e-12


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RiskCoverage:
    """The share of errors among the rows accepted, threshold by threshold.

    Attributes:
        confidence_K: (K,) distinct confidences, falling; rows at or above one are accepted.
        coverage_K: (K,) share of all rows accepted, rising to 1.
        risk_K: (K,) share of the accepted rows predicted wrong.
    """

    confidence_K: NDArray[Any]
    coverage_K: NDArray[np.float64]
    risk_K: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Accepted:
    """Rows accepted at each distinct confidence, from the highest, under R weightings.

    Attributes:
        new_KR: (K, R) weight of the rows of that confidence.
        taken_KR: (K, R) weight of the rows of that confidence or above.
        wrong_KR: (K, R) weight of those predicted wrong.
    """

    new_KR: NDArray[np.float64]
    taken_KR: NDArray[np.float64]
    wrong_KR: NDArray[np.float64]

    def risk(self) -> NDArray[np.float64]:
        """(K, R) share of the accepted rows predicted wrong; 0 where none is accepted."""
        risk: NDArray[np.float64] = self.wrong_KR / np.where(self.taken_KR > 0, self.taken_KR, 1)
        return risk


def risk_coverage(truth_N: Rows, predicted_N: Rows, confidence_N: Rows) -> RiskCoverage:
    """The risk-coverage curve: rows of equal confidence are accepted together.

    Args:
        truth_N: (N,) true labels.
        predicted_N: (N,) predicted labels.
        confidence_N: (N,) finite, larger for surer; any scale.

    Raises:
        ValueError: If a column is unusable.

    Source: El-Yaniv and Wiener 2010, JMLR 11:1605, section 2.
    """
    arrays = AURC.arrays(truth_N, predicted_N, confidence_N)
    wrong_N, confidence = _checked("risk_coverage", arrays)
    level_K, rising_N = np.unique(confidence, return_inverse=True)
    taken_K = np.bincount(rising_N)[::-1].cumsum()
    wrong_K = np.bincount(rising_N, weights=wrong_N)[::-1].cumsum()
    return RiskCoverage(
        confidence_K=level_K[::-1], coverage_K=taken_K / len(wrong_N), risk_K=wrong_K / taken_K
    )


def accuracy_at_coverage(coverage: float) -> Metric:
    """Accuracy on the surest rows: the fewest, by whole ties, that are at least this share.

    Args:
        coverage: Above 0, at most 1.

    Raises:
        ValueError: If ``coverage`` is out of range.
    """
    if not 0 < coverage <= 1:
        msg = (
            f"accuracy_at_coverage: needs a coverage above 0 and at most 1; got {coverage}. "
            "Use 0.8 for the surest 80 % of the rows."
        )
        raise ValueError(msg)

    def value(accepted: Accepted) -> NDArray[np.float64]:
        total_R = accepted.taken_KR[-1]
        first_R = (accepted.taken_KR >= (coverage - TIE) * total_R).argmax(axis=0)
        risk_R = accepted.risk()[first_R, np.arange(len(first_R))]
        return np.where(total_R > 0, 1 - risk_R, np.nan)

    return _metric(f"accuracy_at_{coverage:g}_coverage", value, is_better_larger=True)


def _metric(
    name: str, value: Callable[[Accepted], NDArray[np.float64]], *, is_better_larger: bool
) -> Metric:
    """A metric of the rows in the order of their confidence; holds at most 2 N numbers."""

    def over_groups(columns: Columns, code_N: NDArray[np.int64], n_groups: int) -> Statistic:
        wrong_N, confidence_N = _checked(name, columns)
        level_K, rising_N = np.unique(confidence_N, return_inverse=True)
        cell_N, shape = len(level_K) - 1 - rising_N, (len(level_K), n_groups)
        taken = GroupSums(cell_N, code_N, shape=shape)
        wrong = GroupSums(cell_N[wrong_N], code_N[wrong_N], shape=shape)

        def statistic(weight_RG: NDArray[np.float64]) -> NDArray[np.float64]:
            values = []
            for weight_GR in blocks_of_weights(weight_RG, n_cells=len(level_K)):
                new_KR = taken.columns_under(weight_GR)
                accepted = Accepted(
                    new_KR=new_KR,
                    taken_KR=new_KR.cumsum(axis=0),
                    wrong_KR=wrong.columns_under(weight_GR).cumsum(axis=0),
                )
                values.append(value(accepted))
            return np.concatenate(values)

        return statistic

    return Metric(
        name=name,
        columns=COLUMNS,
        bounds=(0.0, 1.0),
        is_better_larger=is_better_larger,
        has_classes=False,
        over_groups=over_groups,
    )


def _checked(who: str, columns: Columns) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    """Whether each row is wrong, and its confidence."""
    truth = labels_of(who, "truth", columns[0])
    predicted = labels_of(who, "predicted", columns[1], n_rows=len(truth))
    refuse_mixed(who, truth=truth, predicted=predicted)
    confidence = labels_of(who, "confidence", columns[2], n_rows=len(truth))
    if confidence.dtype.kind not in "biuf" or not np.isfinite(confidence).all():
        msg = (
            f"{who}: confidence needs finite numbers; got {confidence.dtype} with an infinity or "
            "no numbers at all. Give the probability of the predicted class."
        )
        raise ValueError(msg)
    return truth != predicted, confidence


def _aurc(accepted: Accepted) -> NDArray[np.float64]:
    return ratio((accepted.new_KR * accepted.risk()).sum(axis=0), accepted.taken_KR[-1])


def _excess_aurc(accepted: Accepted) -> NDArray[np.float64]:
    return np.maximum(_aurc(accepted) - _best_aurc(accepted), 0)


def _best_aurc(accepted: Accepted) -> NDArray[np.float64]:
    """AURC of a confidence that puts all right rows before all wrong ones, one at a time.

    Errors come at places right + 1 .. n, where risk is 1 - right / place; the sum is closed by
    harmonic numbers.
    """
    total_R, wrong_R = accepted.taken_KR[-1], accepted.wrong_KR[-1]
    right_R = total_R - wrong_R
    harmonic_R = digamma(total_R + 1) - digamma(right_R + 1)
    return ratio(wrong_R - right_R * harmonic_R, total_R)


AURC = _metric("aurc", _aurc, is_better_larger=False)
"""Area under the risk-coverage curve: the mean over the rows of the risk at the threshold that
accepts each. Rows of equal confidence are accepted together.

Source: Geifman, Uziel and El-Yaniv 2019, arXiv:1805.08206, equation 3."""

EXCESS_AURC = _metric("excess_aurc", _excess_aurc, is_better_larger=False)
"""AURC above that of the best order of the same predictions, exact where the paper takes the limit
of many rows.

Source: Geifman, Uziel and El-Yaniv 2019, arXiv:1805.08206, section 3."""

ACCURACY_AT_80 = accuracy_at_coverage(0.8)
"""Accuracy on the surest 80 % of the rows."""
