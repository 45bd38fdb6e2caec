"""A step length that meets the strong Wolfe conditions, to within the noise of the value."""

# Shape suffixes: C classes, E parameters of a class.

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

DECREASE = 1e-4
CURVATURE = 0.9
MOST_TRIALS = 25


class Point(NamedTuple):
    """Parameters, and the objective there.

    Attributes:
        parameter_CE: (C, E) float64.
        value: Of the objective.
        gradient_CE: (C, E) float64.
    """

    parameter_CE: Tensor
    value: float
    gradient_CE: Tensor


def line_search(
    evaluate: Callable[[Tensor], Point], start: Point, direction_CE: Tensor, *, noise: float
) -> Point | None:
    """The first point found whose value is lower and whose slope is flat enough.

    Lower means by 1e-4 of what the slope promises, less ``noise`` of the value, below which
    rounding decides; flat enough is a slope of at most 0.9 of the first one's size. Unit length is
    tried first; brackets are cut where the slopes' secant is zero.

    Args:
        evaluate: Gives value and gradient.
        start: Where the search starts.
        direction_CE: (C, E) where it goes.
        noise: Of values, relative.

    Returns:
        The point; None if the direction does not descend or 25 trials found none.
    """
    slope = float((start.gradient_CE * direction_CE).sum())
    if not slope < 0:
        return None
    low, low_slope, high, high_slope = 0.0, slope, float("inf"), float("nan")
    length = 1.0
    for _ in range(MOST_TRIALS):
        point = evaluate(start.parameter_CE + length * direction_CE)
        at = float((point.gradient_CE * direction_CE).sum())
        limit = start.value + DECREASE * length * slope + noise * abs(start.value)
        if point.value <= limit and abs(at) <= -CURVATURE * slope:
            return point
        if at >= 0 or not point.value <= limit:
            high, high_slope = length, at
        else:
            low, low_slope = length, at
        length = _between(low, low_slope, high, high_slope)
    return None


def _between(low: float, low_slope: float, high: float, high_slope: float) -> float:
    if high == float("inf"):
        return 4 * low
    width = high - low
    if not high_slope > 0:
        return low + width / 2
    cut = low - low_slope * width / (high_slope - low_slope)
    return min(max(cut, low + 0.1 * width), high - 0.1 * width)
