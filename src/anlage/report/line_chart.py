"""A line chart as plain geometry: what the template draws as SVG, and what its tooltip says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil, floor, isfinite, log10

WIDTH, HEIGHT = 440, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 428, 14, 196
MOST_POINTS = 400
N_COLOURS = 4
LOG_ABOVE = 30  # largest over smallest value from which an axis is logarithmic

Value = float | None


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A mark on an axis: its place in pixels of the drawing, and what is written there."""

    at: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """One series: its name, SVG path, colour (a number of the palette) and last value in words."""

    name: str
    path: str
    colour: int
    last: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One line chart.

    Attributes:
        title: What is shown.
        note: How to read it, a sentence; may be empty.
        lines: The series.
        x_ticks: Marks of the x axis.
        y_ticks: Marks of the y axis.
        reference: A level to compare with, in pixels and words; None if there is none.
        spoken: The chart in words, for those who do not see it.
        data: JSON for the tooltip: steps, their places, and each series' values.
    """

    title: str
    note: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    reference: Tick | None
    spoken: str
    data: str


def line_chart(
    title: str,
    steps: Sequence[int],
    series: Mapping[str, Sequence[Value]],
    *,
    note: str = "",
    from_zero: bool = False,
    reference: tuple[float, str] | None = None,
    x_name: str = "step",
) -> Chart | None:
    """Lay out a line chart; None if no series has a number.

    Long series are shown as means of equal bins, at most 400.

    Args:
        title: What is shown.
        steps: x values, rising.
        series: y values by name, one a step; None where there is none.
        note: How to read it.
        from_zero: Whether the y axis begins at 0.
        reference: A y value to compare with, and its name; left out if it would flatten the lines.
        x_name: What an x value is.
    """
    shown = {name: values for name, values in series.items() if any(_is_number(v) for v in values)}
    if not shown or not steps:
        return None
    n_bins = min(len(steps), MOST_POINTS)
    x = [v for v in _binned([float(s) for s in steps], n_bins) if v is not None]
    binned = {name: _binned(values, n_bins) for name, values in shown.items()}
    axis = _axis(
        [v for line in binned.values() for v in line if v is not None],
        from_zero=from_zero,
        reference=reference,
    )
    px = [scaled(v, (x[0], x[-1]), (LEFT, RIGHT)) for v in x]
    lines = tuple(
        Line(
            name=name,
            path=_path(px, [v if v is None else axis.place(v) for v in values]),
            colour=number % N_COLOURS + 1,
            last=short_number(next(v for v in reversed(shown[name]) if _is_number(v)) or 0.0),
        )
        for number, (name, values) in enumerate(binned.items())
    )
    return Chart(
        title=title,
        note=note,
        lines=lines,
        x_ticks=tuple(
            Tick(at=scaled(v, (x[0], x[-1]), (LEFT, RIGHT)), text=f"{v:,.0f}")
            for v in nice_ticks(x[0], x[-1], n=4, inside=True)
            if v == round(v)
        ),
        y_ticks=axis.ticks,
        reference=axis.reference,
        spoken=_spoken(title, x_name, steps, shown),
        data=_tooltip(x_name, x, px, binned),
    )


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """The y axis: linear, or logarithmic where values span decades."""

    low: float
    high: float
    is_log: bool
    ticks: tuple[Tick, ...] = ()
    reference: Tick | None = None

    def place(self, value: float) -> float:
        change = log10 if self.is_log else float
        return scaled(change(value), (change(self.low), change(self.high)), (BOTTOM, TOP))


def _axis(numbers: list[float], *, from_zero: bool, reference: tuple[float, str] | None) -> _Axis:
    """Fit the axis to the numbers, and to the reference unless it would flatten them."""
    is_log = not from_zero and min(numbers) > 0 and max(numbers) > LOG_ABOVE * min(numbers)
    is_near = reference is not None and (is_log or reference[0] <= 4 * max(numbers))
    shown = [*numbers, reference[0]] if reference is not None and is_near else numbers
    if is_log:
        exponents = range(floor(log10(min(shown))), ceil(log10(max(shown))) + 1)
        values = [10.0**exponent for exponent in exponents]
    else:
        values = nice_ticks(min([0.0, *shown] if from_zero else shown), max(shown))
    axis = _Axis(low=values[0], high=values[-1], is_log=is_log)
    marked = None
    if reference is not None and is_near:
        marked = Tick(at=axis.place(reference[0]), text=reference[1])
    ticks = tuple(Tick(at=axis.place(v), text=short_number(v)) for v in values)
    return replace(axis, ticks=ticks, reference=marked)


def nice_ticks(low: float, high: float, *, n: int = 4, inside: bool = False) -> list[float]:
    """Round numbers about ``n`` steps apart that enclose (or lie inside) an interval, rising."""
    if high - low < 1e-12 * max(abs(low), abs(high), 1e-12):
        pad = abs(low) / 2 or 0.5
        low, high = low - pad * (not inside), high + pad
    rough = (high - low) / n
    size = 10.0 ** floor(log10(rough))
    step = next(size * k for k in (1, 2, 2.5, 5, 10) if size * k >= rough * (1 - 1e-9))
    first, last = (
        (ceil(low / step - 1e-9), floor(high / step + 1e-9))
        if inside
        else (floor(low / step + 1e-9), ceil(high / step - 1e-9))
    )
    return [round(k * step, 12) for k in range(first, last + 1)]


def short_number(value: float) -> str:
    """A number in as few characters as it can be told from its neighbours with."""
    if value != 0 and (abs(value) < 1e-2 or abs(value) >= 1e6):
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def scaled(value: float, domain: tuple[float, float], pixels: tuple[float, float]) -> float:
    """Where a value lies in pixels; the middle if the domain is one point."""
    extent = domain[1] - domain[0]
    share = (value - domain[0]) / extent if extent else 0.5
    return round(pixels[0] + share * (pixels[1] - pixels[0]), 1)


def _is_number(value: Value) -> bool:
    return value is not None and isfinite(value)


def _binned(values: Sequence[Value], n_bins: int) -> list[Value]:
    """Means of ``n_bins`` equal runs of values; None where a run has no number."""
    edges = [len(values) * k // n_bins for k in range(n_bins + 1)]
    means: list[Value] = []
    for first, last in pairwise(edges):
        numbers = [v for v in values[first:last] if v is not None and isfinite(v)]
        means.append(sum(numbers) / len(numbers) if numbers else None)
    return means


def _path(px: Sequence[float], py: Sequence[Value]) -> str:
    """An SVG path through the points, broken where there is no number."""
    parts, pen = [], "M"
    for x, y in zip(px, py, strict=True):
        if y is not None:
            parts.append(f"{pen}{x:g} {y:g}")
        pen = "M" if y is None else "L"
    return "".join(parts) + ("h0" if len(parts) == 1 else "")


def _spoken(
    title: str, x_name: str, steps: Sequence[int], series: Mapping[str, Sequence[Value]]
) -> str:
    told = []
    for name, values in series.items():
        numbers = [v for v in values if v is not None and isfinite(v)]
        told.append(f"{name} from {short_number(numbers[0])} to {short_number(numbers[-1])}")
    return f"{title}, {x_name}s {steps[0]} to {steps[-1]}: {'; '.join(told)}."


def _tooltip(
    name: str, x: Sequence[float], px: Sequence[float], binned: Mapping[str, Sequence[Value]]
) -> str:
    lines = [
        {"name": name, "values": [None if v is None else short_number(v) for v in values]}
        for name, values in binned.items()
    ]
    return json.dumps({"name": name, "x": [round(v) for v in x], "px": list(px), "lines": lines})
