"""Concordance of risk and survival: Harrell's and Uno's C, and the AUC at a time."""

# Shape suffixes: N rows (patients), G groups, R weightings, B rows of a block.

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anlage.probes.metrics.kaplan_meier import censoring_survival
from anlage.probes.metrics.metric import Columns, Metric, Statistic
from anlage.probes.metrics.survival_times import survival_times

TIED_RISK = 1e-8
KEPT_PAIRS = 9_000_000
BLOCK_PAIRS = 4_000_000
NAMES = ("event", "time", "risk")

Pairs = tuple[slice, NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Order:
    """Who is compared with whom: row i, of weight ``first_N[i]``, with the rows after it.

    ``comes_after(rows)`` is a (B, N) bool: which rows a pair of row i may have for its second.
    """

    first_N: NDArray[np.float64]
    comes_after: Callable[[NDArray[np.int64]], NDArray[np.bool_]]


def _harrell(columns: Columns, code_N: NDArray[np.int64], n_groups: int) -> Statistic:
    event, time, risk = _checked("harrell_c", columns)
    order = _Order(first_N=event.astype(np.float64), comes_after=_later(event, time))
    return _pair_statistic(order, risk, code_N, n_groups)


HARRELL_C = Metric(
    name="harrell_c",
    columns=NAMES,
    bounds=(0.0, 1.0),
    has_classes=False,
    over_groups=_harrell,
)
"""Harrell's C: of the pairs of rows whose order of events is known, the share that risk puts right.

A pair is known where the earlier row has an event; at equal times, where one has an event and the
other is censored (two events at one time are no pair). Risks within 1e-8 count half. A row with
larger ``risk`` is expected to have its event earlier. NaN where no pair is known. These are
scikit-survival's rules. Resampled by pair sums of groups: (G, G) float64, kept up to 3,000 groups
and computed again, 4 million pairs at a time, for each call above that.

Source: Harrell et al. 1982."""


def uno_c(train_time_M: ArrayLike, train_event_M: ArrayLike, *, tau: float | None = None) -> Metric:
    """Uno's C: Harrell's pairs weighted by 1 / G(time)^2, which do not depend on the censoring.

    G is the Kaplan-Meier estimate of the censoring of the train side; it stays as it is when
    patients are resampled.

    Args:
        train_time_M: (M,) times that the censoring is estimated from.
        train_event_M: (M,) their events, bool or 0/1.
        tau: Pairs count only where the first event lies before this time. None: all of them, and
            the last few, hardly observed, can outweigh the rest.

    Returns:
        A metric of ("event", "time", "risk"). It refuses events later than the follow-up of the
        train side, or at which G is zero.

    Raises:
        ValueError: If the train columns are unusable, or tau is not > 0.

    Source: Uno et al. 2011, Statistics in Medicine 30(10). Ties as scikit-survival.
    """
    event_M, time_M = survival_times("uno_c", train_event_M, train_time_M, needs_event=False)
    if tau is not None and not tau > 0:
        msg = f"uno_c: tau needs to be > 0; got {tau}. Use a time with patients still followed."
        raise ValueError(msg)

    def over_groups(columns: Columns, code_N: NDArray[np.int64], n_groups: int) -> Statistic:
        event, time, risk = _checked("uno_c", columns)
        counts = event if tau is None else event & (time < tau)
        first = _inverse_censoring("uno_c", (event_M, time_M), counts, time) ** 2
        order = _Order(first_N=first, comes_after=_later(event, time))
        return _pair_statistic(order, risk, code_N, n_groups)

    return Metric(
        name="uno_c", columns=NAMES, bounds=(0.0, 1.0), has_classes=False, over_groups=over_groups
    )


def dynamic_auc(train_time_M: ArrayLike, train_event_M: ArrayLike, *, at_time: float) -> Metric:
    """Cumulative/dynamic AUC: do rows with an event up to a time have more risk than those beyond.

    Cases are weighted by 1 / G(their time), with G from the train side as in ``uno_c``; risks
    within 1e-8 count half.

    Args:
        train_time_M: (M,) times that the censoring is estimated from.
        train_event_M: (M,) their events, bool or 0/1.
        at_time: The time, > 0.

    Returns:
        A metric of ("event", "time", "risk"), NaN without a case or without a control.

    Raises:
        ValueError: If the train columns are unusable, or the time is not > 0.

    Source: Hung & Chiang 2010; Uno et al. 2007. As scikit-survival's cumulative_dynamic_auc at one
    time, which needs all test times within the train side's; only those of cases are needed here.
    """
    event_M, time_M = survival_times("dynamic_auc", train_event_M, train_time_M, needs_event=False)
    if not at_time > 0:
        msg = f"dynamic_auc: at_time needs to be > 0; got {at_time}. Use a time within follow-up."
        raise ValueError(msg)

    def over_groups(columns: Columns, code_N: NDArray[np.int64], n_groups: int) -> Statistic:
        event, time, risk = _checked("dynamic_auc", columns)
        is_case = event & (time <= at_time)
        is_control = time > at_time
        order = _Order(
            first_N=_inverse_censoring("dynamic_auc", (event_M, time_M), is_case, time),
            comes_after=lambda rows: np.broadcast_to(is_control, (len(rows), len(time))),
        )
        return _pair_statistic(order, risk, code_N, n_groups)

    return Metric(
        name=f"auc_at_{at_time:g}",
        columns=NAMES,
        bounds=(0.0, 1.0),
        has_classes=False,
        over_groups=over_groups,
    )


def _checked(
    who: str, columns: Columns
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]:
    event, time = survival_times(who, columns[0], columns[1])
    risk = np.asarray(columns[2], dtype=np.float64)
    if risk.shape != time.shape or not np.isfinite(risk).all():
        msg = (
            f"{who}: risk needs one finite number for each of {len(time)} rows; got shape "
            f"{risk.shape}, {int((~np.isfinite(risk)).sum())} not finite. Check the model's output."
        )
        raise ValueError(msg)
    return event, time, risk


def _later(
    event: NDArray[np.bool_], time: NDArray[np.float64]
) -> Callable[[NDArray[np.int64]], NDArray[np.bool_]]:
    def comes_after(rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        own = time[rows, None]
        after: NDArray[np.bool_] = (time > own) | ((time == own) & ~event)
        return after

    return comes_after


def _inverse_censoring(
    who: str,
    train: tuple[NDArray[np.bool_], NDArray[np.float64]],
    counts_N: NDArray[np.bool_],
    time_N: NDArray[np.float64],
) -> NDArray[np.float64]:
    """(N,) 1 / G(time) where the row counts, else 0."""
    weight = np.zeros(len(time_N))
    free = censoring_survival(who, *train, time_N[counts_N]) if counts_N.any() else weight[:0]
    if (free == 0).any():
        msg = (
            f"{who}: events need a time at which some of the train side are still followed; got "
            f"one at {time_N[counts_N][free == 0].min():g}, where all are censored. Set tau below."
        )
        raise ValueError(msg)
    weight[counts_N] = 1 / free
    return weight


def _pair_statistic(
    order: _Order, risk_N: NDArray[np.float64], code_N: NDArray[np.int64], n_groups: int
) -> Statistic:
    kept = None if n_groups**2 > KEPT_PAIRS else list(_pair_blocks(order, risk_N, code_N))
    present = np.unique(code_N)

    def statistic(weight_RG: NDArray[np.float64]) -> NDArray[np.float64]:
        weight_RG = weight_RG[:, present]
        right_R, known_R = np.zeros(len(weight_RG)), np.zeros(len(weight_RG))
        blocks = _pair_blocks(order, risk_N, code_N) if kept is None else kept
        for groups, right_BG, known_BG in blocks:
            own_RB = weight_RG[:, groups]
            right_R += ((own_RB @ right_BG) * weight_RG).sum(axis=1)
            known_R += ((own_RB @ known_BG) * weight_RG).sum(axis=1)
        with np.errstate(invalid="ignore"):
            ratio: NDArray[np.float64] = right_R / known_R
        return ratio

    return statistic


def _pair_blocks(
    order: _Order, risk_N: NDArray[np.float64], code_N: NDArray[np.int64]
) -> Iterator[Pairs]:
    """Sums over the pairs of each two groups, for a few first rows at a time."""
    row_N = np.argsort(code_N, kind="stable").astype(np.int64)
    _, start_G, place_N = np.unique(code_N[row_N], return_index=True, return_inverse=True)
    n_block = max(1, BLOCK_PAIRS // len(row_N))
    for first in range(0, len(row_N), n_block):
        rows, own = row_N[first : first + n_block], place_N[first : first + n_block]
        known = order.comes_after(rows)[:, row_N]
        gap = risk_N[rows, None] - risk_N[row_N]
        right = known * np.where(np.abs(gap) <= TIED_RISK, 0.5, gap > 0)
        weight = order.first_N[rows, None]
        yield (
            slice(own[0], own[-1] + 1),
            _group_sums(right * weight, own, start_G),
            _group_sums(known * weight, own, start_G),
        )


def _group_sums(
    pair_BN: NDArray[np.float64], own_B: NDArray[np.int64], start_G: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Sums of pairs over the rows of each group, on both sides; rows are in order of groups."""
    if len(start_G) == pair_BN.shape[1]:  # one row a group
        return pair_BN
    by_group = np.add.reduceat(pair_BN, start_G, axis=1)
    starts = np.searchsorted(own_B, np.arange(own_B[0], own_B[-1] + 1))
    sums: NDArray[np.float64] = np.add.reduceat(by_group, starts, axis=0)
    return sums
