"""The integrated Brier score of predicted survival curves."""

# Shape suffixes: N rows (patients), G groups, R weightings, T times.

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anlage.probes.metrics.kaplan_meier import censoring_survival
from anlage.probes.metrics.metric import Columns, Metric, Statistic
from anlage.probes.metrics.survival_times import survival_times

WHO = "integrated_brier"


def integrated_brier(
    train_time_M: ArrayLike, train_event_M: ArrayLike, *, times_T: ArrayLike
) -> Metric:
    """Mean squared error of predicted survival, over rows and over a span of time.

        BS(t) = mean_i [ S_i(t)^2 1(time_i <= t, event_i) / G(time_i)
                         + (1 - S_i(t))^2 1(time_i > t) / G(t) ]

    integrated over ``times_T`` by the trapezoid rule and divided by their span. G is the
    Kaplan-Meier estimate of the censoring of the train side; it stays as it is when patients are
    resampled, so the score is a mean of one number a row. Without a model (S = 0.5) it is 0.25.

    Args:
        train_time_M: (M,) times that the censoring is estimated from.
        train_event_M: (M,) their events, bool or 0/1.
        times_T: (T,) rising times, T >= 2, within the follow-up of both sides.

    Returns:
        A metric of ("event", "time", "survival"), with survival (N, T) in 0 to 1, the predicted
        share free of the event at ``times_T``, such as ``CoxHead.survival(test, times_T)`` gives.

    Raises:
        ValueError: If the train columns or times are unusable, or G is zero at the last time.

    Source: Graf et al. 1999. As scikit-survival's integrated_brier_score, which also refuses times
    beyond the follow-up of the test side.
    """
    event_M, time_M = survival_times(WHO, train_event_M, train_time_M, needs_event=False)
    times = _rising(times_T)
    free_T = censoring_survival(WHO, event_M, time_M, times)
    if free_T[-1] == 0:
        msg = (
            f"{WHO}: times_T needs to end where some of the train side are still followed; got "
            f"{times[-1]:g}, by when all are censored. End earlier."
        )
        raise ValueError(msg)

    def over_groups(columns: Columns, code_N: NDArray[np.int64], n_groups: int) -> Statistic:
        event, time = survival_times(WHO, columns[0], columns[1], needs_event=False)
        survival_NT = _curves(columns[2], (len(time), len(times)))
        seen = event & (time <= times[-1])
        inverse_N = np.zeros(len(time))
        inverse_N[seen] = 1 / censoring_survival(WHO, event_M, time_M, time[seen])
        is_over = (time[:, None] <= times) & seen[:, None]
        error_NT = survival_NT**2 * is_over * inverse_N[:, None]
        error_NT += (1 - survival_NT) ** 2 * (time[:, None] > times) / free_T
        error_N = np.trapezoid(error_NT, times, axis=1) / (times[-1] - times[0])
        sum_G = np.bincount(code_N, weights=error_N, minlength=n_groups)
        count_G = np.bincount(code_N, minlength=n_groups)

        def statistic(weight_RG: NDArray[np.float64]) -> NDArray[np.float64]:
            with np.errstate(invalid="ignore"):
                mean: NDArray[np.float64] = (weight_RG @ sum_G) / (weight_RG @ count_G)
            return mean

        return statistic

    return Metric(
        name=WHO,
        columns=("event", "time", "survival"),
        bounds=(0.0, np.inf),
        is_better_larger=False,
        has_classes=False,
        over_groups=over_groups,
    )


def _rising(times_T: ArrayLike) -> NDArray[np.float64]:
    times = np.asarray(times_T, dtype=np.float64)
    if times.ndim != 1 or len(times) < 2 or not (np.diff(times) > 0).all() or times[0] < 0:
        msg = (
            f"{WHO}: times_T needs two rising times >= 0 or more; got "
            f"{np.array2string(times, threshold=6)}. Sort them and drop repeats."
        )
        raise ValueError(msg)
    return times


def _curves(survival_NT: NDArray[np.generic], shape: tuple[int, int]) -> NDArray[np.float64]:
    curves = np.asarray(survival_NT, dtype=np.float64)
    if curves.shape != shape or not ((curves >= 0) & (curves <= 1)).all():
        msg = (
            f"{WHO}: survival needs numbers of 0 to 1 for {shape[0]} rows at {shape[1]} times; got "
            f"shape {curves.shape}. Give the probability of survival, not the risk, at times_T."
        )
        raise ValueError(msg)
    return curves
