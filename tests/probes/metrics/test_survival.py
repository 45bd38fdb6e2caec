import json
from pathlib import Path

import numpy as np
import pytest

from anlage.probes.metrics.survival import integrated_brier

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "survival.json").read_text())
TIMES = np.array([2.0, 4.0, 5.0, 8.0])


def made(generator, n_rows=50):
    time = generator.integers(1, 15, n_rows).astype(float)
    survival = np.sort(generator.random((n_rows, 4)))[:, ::-1]
    return generator.random(n_rows) < 0.6, time, survival


def slow_integrated_brier(train, columns, times):
    def free(at):  # probability of no censoring up to and including a time
        value = 1.0
        for time in np.unique(train[0][~train[1]]):
            if time <= at:
                n_left = (train[0] > time).sum() + ((train[0] == time) & ~train[1]).sum()
                value *= 1 - ((train[0] == time) & ~train[1]).sum() / n_left
        return value

    score = []
    for place, at in enumerate(times):
        errors = []
        for event, time, curve in zip(*columns, strict=True):
            if time > at:
                errors.append((1 - curve[place]) ** 2 / free(at))
            else:
                errors.append(curve[place] ** 2 / free(time) if event else 0)
        score.append(np.mean(errors))
    return np.trapezoid(score, times) / (times[-1] - times[0])


def test_equals_a_slow_loop_and_weights_are_repeats(generator):
    train = (generator.integers(6, 20, 40), generator.random(40) < 0.5)
    metric, columns = integrated_brier(*train, times_T=TIMES), made(generator)
    assert metric(*columns) == pytest.approx(slow_integrated_brier(train, columns, TIMES))
    code, weight = np.arange(50) % 7, generator.integers(0, 3, (4, 7)).astype(float)
    values = metric.over_groups(columns, code, 7)(weight)
    for value, weight_G in zip(values, weight, strict=True):
        rows = np.repeat(np.arange(50), weight_G[code].astype(int))
        assert value == pytest.approx(metric(*[column[rows] for column in columns]))


def test_without_censoring_it_is_the_brier_score(generator):
    time = generator.random(30) * 10
    metric = integrated_brier(time, np.ones(30), times_T=[2, 3])
    curve = np.full((30, 2), 0.5)
    assert metric(np.ones(30), time, curve) == pytest.approx(0.25)
    perfect = (time[:, None] > [2, 3]).astype(float)
    assert metric(np.ones(30), time, perfect) == 0
    assert not metric.is_better_larger


def test_bad_input_is_refused(generator):
    event, time, survival = made(generator)
    with pytest.raises(ValueError, match="two rising times"):
        integrated_brier(time, event, times_T=[3, 2])
    with pytest.raises(ValueError, match="beyond 16"):
        integrated_brier(np.append(time, 16), np.append(event, True), times_T=[3, 20])
    with pytest.raises(ValueError, match="all are censored"):
        integrated_brier([1, 2, 3], [1, 1, 0], times_T=[1, 3])
    metric = integrated_brier(time, event, times_T=TIMES)
    with pytest.raises(ValueError, match="0 to 1 for 50 rows at 4 times"):
        metric(event, time, survival[:, 1:])
    with pytest.raises(ValueError, match="not the risk"):
        metric(event, time, survival + 1)
