"""Survival without a model: the Kaplan-Meier curve and the log-rank test."""

# Shape suffixes: N rows (patients), U different times, G groups, T times asked for.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from anlage.probes.checks import labels_of
from anlage.probes.metrics.survival_times import survival_times


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SurvivalCurve:
    """A step function that starts at 1 and falls at the times of events.

    Attributes:
        time_U: (U,) different times of the data, rising.
        survival_U: (U,) share still free of the event just after each time.
        low_U: (U,) lower end of the pointwise 95% interval, in 0 to 1.
        high_U: (U,) upper end.
        n_at_risk_U: (U,) int64 rows in follow-up just before each time.
        n_events_U: (U,) int64 events at each time.
    """

    time_U: NDArray[np.float64]
    survival_U: NDArray[np.float64]
    low_U: NDArray[np.float64]
    high_U: NDArray[np.float64]
    n_at_risk_U: NDArray[np.int64]
    n_events_U: NDArray[np.int64]

    def at(self, time_T: ArrayLike) -> NDArray[np.float64]:
        """(T,) the curve at these times, its last value kept beyond its end."""
        place_T = np.searchsorted(self.time_U, np.asarray(time_T, dtype=np.float64), side="right")
        stepped: NDArray[np.float64] = np.concatenate([[1.0], self.survival_U])[place_T]
        return stepped

    def median(self) -> float:
        """First time at which at most half are free of the event; NaN where it is not reached."""
        reached = np.flatnonzero(self.survival_U <= 0.5 + 1e-12)
        return float(self.time_U[reached[0]]) if len(reached) else float("nan")


@dataclass(frozen=True, kw_only=True, slots=True)
class LogRank:
    """Whether groups differ in survival.

    Attributes:
        statistic: Chi-squared statistic.
        p_value: Of the hypothesis that all groups share one hazard, 0 to 1.
        n_groups: G; the statistic has G - 1 degrees of freedom.
    """

    statistic: float
    p_value: float
    n_groups: int


def kaplan_meier(time_N: ArrayLike, event_N: ArrayLike) -> SurvivalCurve:
    """The product-limit estimate of survival.

    At a tied time events come before censorings. The interval is Greenwood's on the scale of
    log(-log S), so that it stays in 0 to 1; it has no width where the curve is 1 or 0.

    Args:
        time_N: (N,) time of the event or of the end of follow-up, >= 0.
        event_N: (N,) bool or 0/1; nobody needs to have an event.

    Raises:
        ValueError: If the columns are unusable.

    Source: Kaplan & Meier 1958; Kalbfleisch & Prentice 1980 for the interval.
    """
    event, time = survival_times("kaplan_meier", event_N, time_N, needs_event=False)
    time_U, at_risk, events, _ = _counts(event, time)
    survival_U = np.cumprod(1 - events / at_risk, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = np.cumsum(events / (at_risk * (at_risk - events)))
        spread = stats.norm.ppf(0.975) * np.sqrt(variance) / np.log(survival_U)
        low, high = survival_U ** np.exp(-spread), survival_U ** np.exp(spread)
    has_width = (survival_U > 0) & (survival_U < 1)
    return SurvivalCurve(
        time_U=time_U,
        survival_U=survival_U,
        low_U=np.where(has_width, low, survival_U),
        high_U=np.where(has_width, high, survival_U),
        n_at_risk_U=at_risk,
        n_events_U=events,
    )


def censoring_survival(
    who: str, event_N: NDArray[np.bool_], time_N: NDArray[np.float64], at_T: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(T,) probability of not being censored up to and including each time: Kaplan-Meier's G(t).

    Rows with an event leave the risk set before those censored at the same time, as in
    scikit-survival.

    Raises:
        ValueError: If a time lies beyond the last of a curve that has not come down to zero.
    """
    time_U, at_risk, events, censored = _counts(event_N, time_N)
    left = at_risk - events
    free_U = np.cumprod(1 - censored / np.where(left > 0, left, 1))
    late = at_T > time_U[-1]
    if late.any() and free_U[-1] > 0:
        msg = (
            f"{who}: times need to lie within the follow-up that censoring was estimated from; got "
            f"{at_T.max():g}, beyond {time_U[-1]:g}. Set tau or times below it."
        )
        raise ValueError(msg)
    free: NDArray[np.float64] = np.concatenate([[1.0], free_U])[
        np.searchsorted(time_U, at_T, side="right")
    ]
    return free


def log_rank(time_N: ArrayLike, event_N: ArrayLike, group_N: ArrayLike) -> LogRank:
    """The log-rank test of two groups or more, with the hypergeometric variance.

    Args:
        time_N: (N,) time of the event or of the end of follow-up, >= 0.
        event_N: (N,) bool or 0/1, an event or more.
        group_N: (N,) group of each row, such as high and low risk.

    Raises:
        ValueError: If the columns are unusable, or there is one group only.

    Source: Mantel 1966; Peto & Peto 1972.
    """
    event, time = survival_times("log_rank", event_N, time_N)
    group = labels_of("log_rank", "groups", group_N, n_rows=len(time))
    names, code_N = np.unique(group, return_inverse=True)
    if len(names) < 2:
        msg = f"log_rank: needs two groups or more; got only {names[0]!r}. Group by another column."
        raise ValueError(msg)
    time_U, place_N = np.unique(time, return_inverse=True)
    cell = place_N * len(names) + code_N
    shape = (len(time_U), len(names))
    size = len(time_U) * len(names)
    leaving_UG = np.bincount(cell, minlength=size).reshape(shape)
    risk_UG = leaving_UG[::-1].cumsum(axis=0)[::-1].astype(np.float64)
    event_UG = np.bincount(cell[event], minlength=size).reshape(shape).astype(np.float64)
    risk_U, event_U = risk_UG.sum(axis=1), event_UG.sum(axis=1)
    share_UG = risk_UG / risk_U[:, None]
    gap_G = (event_UG - event_U[:, None] * share_UG).sum(axis=0)
    factor_U = event_U * (risk_U - event_U) / np.maximum(risk_U - 1, 1)
    covariance_GG = np.diag((factor_U[:, None] * share_UG).sum(axis=0))
    covariance_GG -= share_UG.T @ (factor_U[:, None] * share_UG)
    statistic = float(gap_G @ np.linalg.pinv(covariance_GG, hermitian=True) @ gap_G)
    return LogRank(
        statistic=statistic,
        p_value=float(stats.chi2.sf(statistic, len(names) - 1)),
        n_groups=len(names),
    )


def _counts(
    event_N: NDArray[np.bool_], time_N: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Different times, and at each: rows at risk just before it, events, censorings."""
    time_U, place_N = np.unique(time_N, return_inverse=True)
    n_times = len(time_U)
    leaving = np.bincount(place_N, minlength=n_times)
    events = np.bincount(place_N[event_N], minlength=n_times)
    at_risk = leaving[::-1].cumsum()[::-1]
    return time_U, at_risk.astype(np.int64), events.astype(np.int64), leaving - events
