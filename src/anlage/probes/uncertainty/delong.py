"""DeLong's variance of the AUROC, its interval, and the test between two models."""

# Shape suffixes: N rows, P positive rows, Q negative rows, S scores (models), G groups (patients).

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtr, ndtri
from scipy.stats import rankdata

from anlage.probes.checks import Rows, labels_of
from anlage.probes.uncertainty.resampling import group_codes


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AurocCovariance:
    """AUROC of some models on the same rows, with the covariance of its errors.

    Attributes:
        auroc_S: (S,) float64, 0 to 1.
        covariance_SS: (S, S) float64.
        n_groups: Patients; rows where none were given.
        n_positive: Of them, those with a positive row.
        n_negative: Those with a negative row.
    """

    auroc_S: NDArray[np.float64]
    covariance_SS: NDArray[np.float64]
    n_groups: int
    n_positive: int
    n_negative: int


@dataclass(frozen=True, kw_only=True, slots=True)
class AurocInterval:
    """An AUROC with its normal interval, and the one from the logit scale, inside 0 to 1.

    Attributes:
        auroc: The estimate.
        standard_error: DeLong's; Obuchowski's where patients have several rows.
        low: Lower end, auroc - z standard errors, clipped to 0 to 1.
        high: Upper end.
        logit_low: Lower end on the logit scale: to be preferred near 1.
        logit_high: Upper end. With an AUROC of 0 or 1 the variance is 0 and both are points.
        n_groups: Patients (rows where none were given).
    """

    auroc: float
    standard_error: float
    low: float
    high: float
    logit_low: float
    logit_high: float
    n_groups: int


@dataclass(frozen=True, kw_only=True, slots=True)
class DelongTest:
    """Two AUROCs on the same rows.

    Attributes:
        auroc_a: Of model a.
        auroc_b: Of model b.
        difference: a minus b.
        standard_error: Of the difference.
        low: Lower end of its normal interval.
        high: Upper end.
        z: Difference over its standard error; 0 if the models order all rows alike. NaN where they
            differ without any error to be seen, as a perfect model and one that is always wrong.
        p_value: Two-sided; NaN where z is.
        n_groups: Patients (rows where none were given).
    """

    auroc_a: float
    auroc_b: float
    difference: float
    standard_error: float
    low: float
    high: float
    z: float
    p_value: float
    n_groups: int


def delong_interval(
    truth_N: Rows, score_N: Rows, group_N: Rows | None = None, *, confidence: float = 0.95
) -> AurocInterval:
    """AUROC of a binary score, with DeLong's interval.

    Args:
        truth_N: (N,) 0 or 1 (or bool).
        score_N: (N,) scores, larger for 1; ties count half.
        group_N: (N,) patient of each row; without it rows are taken as independent.
        confidence: Of the intervals, 0 to 1.

    Raises:
        ValueError: If labels are not 0 and 1, scores not finite, or fewer than two patients have a
            positive or a negative row.

    Source: DeLong et al. 1988, Biometrics 44:837; Obuchowski 1997, Biometrics 53:567.
    """
    found = auroc_covariance("delong_interval", truth_N, (score_N,), group_N)
    auroc, error = float(found.auroc_S[0]), float(np.sqrt(found.covariance_SS[0, 0]))
    z = float(ndtri((1 + confidence) / 2))
    logit_low = logit_high = auroc
    if 0 < auroc < 1:
        half = z * error / (auroc * (1 - auroc))
        logit_low, logit_high = expit(logit(auroc) - half), expit(logit(auroc) + half)
    return AurocInterval(
        auroc=auroc,
        standard_error=error,
        low=max(0.0, auroc - z * error),
        high=min(1.0, auroc + z * error),
        logit_low=float(logit_low),
        logit_high=float(logit_high),
        n_groups=found.n_groups,
    )


def delong_test(
    truth_N: Rows,
    score_a_N: Rows,
    score_b_N: Rows,
    group_N: Rows | None = None,
    *,
    confidence: float = 0.95,
) -> DelongTest:
    """Are the AUROCs of two models on the same rows different?

    Args:
        truth_N: (N,) 0 or 1 (or bool).
        score_a_N: (N,) scores of model a; each model may have a scale of its own.
        score_b_N: (N,) scores of model b.
        group_N: (N,) patient of each row; without it rows are taken as independent.
        confidence: Of the interval of the difference.

    Raises:
        ValueError: As ``delong_interval``.

    Source: DeLong et al. 1988, Biometrics 44:837; Obuchowski 1997, Biometrics 53:567.
    """
    found = auroc_covariance("delong_test", truth_N, (score_a_N, score_b_N), group_N)
    contrast = np.array([1.0, -1.0])
    difference = float(contrast @ found.auroc_S)
    variance = float(contrast @ found.covariance_SS @ contrast)
    error = float(np.sqrt(max(variance, 0.0)))
    z = 0.0 if abs(difference) <= 1e-12 else float("nan")
    if error > 1e-12:
        z = difference / error
    half = float(ndtri((1 + confidence) / 2)) * error
    return DelongTest(
        auroc_a=float(found.auroc_S[0]),
        auroc_b=float(found.auroc_S[1]),
        difference=difference,
        standard_error=error,
        low=max(-1.0, difference - half),
        high=min(1.0, difference + half),
        z=z,
        p_value=float(2 * ndtr(-abs(z))),
        n_groups=found.n_groups,
    )


def auroc_covariance(
    who: str, truth_N: Rows, score_S: tuple[Rows, ...], group_N: Rows | None
) -> AurocCovariance:
    """AUROC and error covariance of several scores of the same rows, O(N log N) each.

    A positive row's component is the share of negative rows it beats, and the reverse; both come
    from ranks. Summed within patients, they give the variance for clustered rows; with one row a
    patient it is DeLong's, and with patients of one class each the last term is zero.

    Args:
        who: Function that asks, for messages.
        truth_N: (N,) 0 or 1.
        score_S: (N,) scores of each model.
        group_N: (N,) patient of each row, or None.

    Raises:
        ValueError: As ``delong_interval``.

    Source: Sun and Xu 2014, IEEE Signal Proc Letters 21:1389 (ranks); Obuchowski 1997 (clusters).
    """
    is_positive, score_SN, code_N, n_groups = _checked(who, truth_N, score_S, group_N)
    positive_SP, negative_SQ = _components(score_SN, is_positive)
    auroc_S = positive_SP.mean(axis=1)
    groups_P, groups_Q = code_N[is_positive], code_N[~is_positive]
    sum_P_SG = _centred_sums(positive_SP, auroc_S, groups_P, n_groups) / len(groups_P)
    sum_Q_SG = _centred_sums(negative_SQ, auroc_S, groups_Q, n_groups) / len(groups_Q)
    n_positive, n_negative = len(np.unique(groups_P)), len(np.unique(groups_Q))
    _refuse_few(who, n_positive, n_negative)
    cross_SS = sum_P_SG @ sum_Q_SG.T * (n_groups / (n_groups - 1))
    covariance_SS = (
        sum_P_SG @ sum_P_SG.T * (n_positive / (n_positive - 1))
        + sum_Q_SG @ sum_Q_SG.T * (n_negative / (n_negative - 1))
        + cross_SS
        + cross_SS.T
    )
    return AurocCovariance(
        auroc_S=auroc_S,
        covariance_SS=covariance_SS,
        n_groups=n_groups,
        n_positive=n_positive,
        n_negative=n_negative,
    )


def _components(
    score_SN: NDArray[np.float64], is_positive: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(S, P) shares of negatives below each positive, (S, Q) of positives above each negative."""
    positive_SP, negative_SQ = score_SN[:, is_positive], score_SN[:, ~is_positive]
    n_positive, n_negative = positive_SP.shape[1], negative_SQ.shape[1]
    rank_SN = rankdata(score_SN, axis=1)
    below_SP = (rank_SN[:, is_positive] - rankdata(positive_SP, axis=1)) / n_negative
    below_SQ = (rank_SN[:, ~is_positive] - rankdata(negative_SQ, axis=1)) / n_positive
    return below_SP, 1 - below_SQ


def _centred_sums(
    component_SP: NDArray[np.float64],
    auroc_S: NDArray[np.float64],
    group_P: NDArray[np.int64],
    n_groups: int,
) -> NDArray[np.float64]:
    centred_SP = component_SP - auroc_S[:, None]
    return np.stack([np.bincount(group_P, weights=row, minlength=n_groups) for row in centred_SP])


def _checked(
    who: str, truth_N: Rows, score_S: tuple[Rows, ...], group_N: Rows | None
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.int64], int]:
    truth = labels_of(who, "truth", truth_N)
    if truth.dtype.kind not in "buif" or not np.isin(truth, (0, 1)).all():
        names = np.unique(truth)[:10].tolist()
        msg = f"{who}: truth needs to be 0 or 1 in each row; got {names}. Compare it with a class."
        raise ValueError(msg)
    scores = [labels_of(who, "scores", score, n_rows=len(truth)) for score in score_S]
    if not all(np.isfinite(score.astype(np.float64)).all() for score in scores):
        msg = f"{who}: scores need to be finite; got an infinity. Give logits or probabilities."
        raise ValueError(msg)
    code_N, n_groups = np.arange(len(truth)), len(truth)
    if group_N is not None:
        group_G, code_N = group_codes(who, group_N, len(truth))
        n_groups = len(group_G)
    is_positive: NDArray[Any] = truth.astype(np.bool_)
    _refuse_few(who, int(is_positive.sum()), int((~is_positive).sum()))
    return is_positive, np.stack(scores).astype(np.float64), code_N, n_groups


def _refuse_few(who: str, n_positive: int, n_negative: int) -> None:
    if min(n_positive, n_negative) < 2:
        msg = (
            f"{who}: needs two patients or more with a positive row and two with a negative; got "
            f"{n_positive} and {n_negative}. Test on more patients."
        )
        raise ValueError(msg)
