"""Times of follow-up with events and censorings: what survival code refuses first."""

# Shape suffixes: N rows (patients).

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anlage.probes.checks import Rows, array_of


def survival_times(
    who: str, event_N: Rows, time_N: Rows, *, n_rows: int | None = None, needs_event: bool = True
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Events and times as clean arrays.

    Args:
        who: Function that asks, for the message.
        event_N: (N,) bool or 0/1: 1 where the event was seen, 0 where follow-up ended first.
        time_N: (N,) time of the event or of the end of follow-up, >= 0, any one unit.
        n_rows: N, where it is known.
        needs_event: Refuse data in which nobody has an event.

    Returns:
        event_N: (N,) bool.
        time_N: (N,) float64.

    Raises:
        ValueError: If lengths differ, there is no row, an event is neither 0 nor 1, a time is
            negative, NaN or infinite, or all are censored.
    """
    event, time = array_of(event_N), array_of(time_N)
    if time.ndim != 1 or not time.size or event.shape != time.shape:
        msg = (
            f"{who}: needs one event and one time for each row; got shapes {event.shape} and "
            f"{time.shape}. Check that rows were dropped from both or from neither."
        )
        raise ValueError(msg)
    if n_rows is not None and len(time) != n_rows:
        msg = (
            f"{who}: needs one event and one time for each of {n_rows} rows; got {len(time)}. "
            "Check that rows were dropped from all columns or from none."
        )
        raise ValueError(msg)
    _refuse_values(who, event, time)
    if needs_event and not event.astype(bool).any():
        msg = (
            f"{who}: needs an event or more; got {len(time)} rows, all censored. "
            "Check that events are coded 1, or take data with longer follow-up."
        )
        raise ValueError(msg)
    return event.astype(bool), time.astype(np.float64)


def _refuse_values(who: str, event: NDArray[np.generic], time: NDArray[np.generic]) -> None:
    if event.dtype.kind not in "biuf" or not np.isin(event, (0, 1)).all():
        msg = (
            f"{who}: event needs to be True/False or 1/0 in each row; got dtype {event.dtype}, "
            f"such as {event[:3].tolist()}. Check the order of event and time; drop unknown rows."
        )
        raise ValueError(msg)
    bad = (
        np.flatnonzero(~(np.isfinite(time) & (time >= 0)))  # type: ignore[operator]
        if time.dtype.kind in "iuf"
        else np.arange(len(time))
    )
    if len(bad):
        msg = (
            f"{who}: time needs a finite number >= 0 in each row; got {time[bad[0]]} in row "
            f"{bad[0]} and {len(bad)} such rows in all. Correct or drop these rows."
        )
        raise ValueError(msg)
