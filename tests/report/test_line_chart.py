from __future__ import annotations

import json
import re

import pytest

from anlage.report.line_chart import (
    BOTTOM,
    LEFT,
    MOST_POINTS,
    RIGHT,
    TOP,
    line_chart,
    nice_ticks,
    short_number,
)


def points(path):
    return [tuple(map(float, p)) for p in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)]


def test_a_line_runs_from_corner_to_corner():
    chart = line_chart("t", [0, 1, 2], {"a": [0.0, 1.0, 2.0]})
    middle = ((LEFT + RIGHT) / 2, (TOP + BOTTOM) / 2)
    assert points(chart.lines[0].path) == [(LEFT, BOTTOM), middle, (RIGHT, TOP)]
    assert [t.text for t in chart.y_ticks] == ["0", "0.5", "1", "1.5", "2"]


def test_gaps_break_the_line():
    chart = line_chart("t", [0, 1, 2, 3], {"a": [1.0, None, 2.0, float("nan")]})
    assert chart.lines[0].path.count("M") == 2
    assert json.loads(chart.data)["lines"][0]["values"] == ["1", None, "2", None]


def test_long_series_are_means_of_bins():
    n = 4 * MOST_POINTS
    chart = line_chart("t", list(range(n)), {"a": [float(k) for k in range(n)]})
    data = json.loads(chart.data)
    assert len(data["x"]) == MOST_POINTS
    assert data["lines"][0]["values"][0] == "1.5"  # the mean of 0, 1, 2, 3
    assert len(points(chart.lines[0].path)) == MOST_POINTS


def test_values_over_decades_get_a_logarithmic_axis():
    chart = line_chart("t", [0, 1, 2], {"a": [1.0, 100.0, 10_000.0]})
    heights = [y for _, y in points(chart.lines[0].path)]
    assert heights == [BOTTOM, (TOP + BOTTOM) / 2, TOP]
    assert line_chart("t", [0, 1], {"a": [0.0, 1e4]}).y_ticks[0].text == "0"


def test_a_reference_is_drawn_only_near_the_lines():
    near = line_chart("t", [0, 1], {"a": [1.0, 2.0]}, reference=(3.0, "limit"))
    far = line_chart("t", [0, 1], {"a": [1.0, 2.0]}, reference=(300.0, "limit"))
    assert near.reference.text == "limit"
    assert TOP <= near.reference.at <= BOTTOM
    assert far.reference is None


def test_nothing_to_draw():
    assert line_chart("t", [0, 1], {"a": [None, float("inf")]}) is None
    assert line_chart("t", [], {"a": []}) is None


def test_one_step_and_a_constant_are_drawn():
    one = line_chart("t", [7], {"a": [3.0]})
    assert points(one.lines[0].path)[0][0] == (LEFT + RIGHT) / 2
    flat = line_chart("t", [0, 1], {"a": [0.0, 0.0]})
    assert len(flat.y_ticks) >= 2


def test_spoken_words_hold_first_and_last():
    chart = line_chart("Loss", [0, 1, 2], {"total": [5.0, None, 3.0]})
    assert chart.spoken == "Loss, steps 0 to 2: total from 5 to 3."


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-3.2, 7.9), (0.98, 1), (1e-7, 3e-7), (0, 123456), (5, 5), (0, 0)]
)
def test_ticks_enclose_and_are_few(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low + 1e-12
    assert ticks[-1] >= high - 1e-12
    assert 2 <= len(ticks) <= 8
    assert all(low <= t <= high for t in nice_ticks(low, high, inside=True)) or low == high


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.001, "1e-3"), (0.25, "0.25"), (12.345, "12.3"), (1234.5, "1,234"), (2e6, "2e6")],
)
def test_short_numbers(value, text):
    assert short_number(value) == text
