import json
from pathlib import Path

import numpy as np
import pytest
from statsmodels.duration.survfunc import SurvfuncRight, survdiff

from anlage.probes.metrics.kaplan_meier import censoring_survival, kaplan_meier, log_rank

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "survival.json").read_text())


def made(generator, n_rows=120):
    return generator.integers(1, 30, n_rows).astype(float), generator.random(n_rows) < 0.6


def test_four_patients_by_hand():
    curve = kaplan_meier([1, 2, 2, 5], [1, 1, 0, 1])
    np.testing.assert_allclose(curve.time_U, [1, 2, 5])
    np.testing.assert_allclose(curve.survival_U, [3 / 4, 3 / 4 * 2 / 3, 0])
    np.testing.assert_array_equal(curve.n_at_risk_U, [4, 3, 1])
    np.testing.assert_array_equal(curve.n_events_U, [1, 1, 1])
    np.testing.assert_allclose(curve.at([0, 1, 1.9, 2, 9]), [1, 0.75, 0.75, 0.5, 0])
    assert curve.median() == 2
    assert np.isnan(kaplan_meier([1, 2, 3], [1, 0, 0]).median())


def test_equals_statsmodels(generator):
    time, event = made(generator)
    ours, theirs = kaplan_meier(time, event), SurvfuncRight(time, event.astype(int))
    np.testing.assert_allclose(ours.at(theirs.surv_times), theirs.surv_prob, atol=1e-12)
    assert ours.median() == theirs.quantile(0.5)


@pytest.mark.parametrize("name", ["distinct", "tied"])
def test_equals_scikit_survival_with_its_interval(name):
    train = GOLDEN[name]["train"]
    curve = kaplan_meier(train["time"], train["event"])
    ours = (curve.time_U, curve.survival_U, curve.low_U, curve.high_U)
    for mine, theirs in zip(ours, GOLDEN[name]["scores"]["kaplan_meier"], strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-12)


@pytest.mark.parametrize("n_groups", [2, 4])
def test_log_rank_equals_statsmodels(generator, n_groups):
    time, event = made(generator)
    group = generator.integers(0, n_groups, len(time))
    ours = log_rank(time, event, group)
    statistic, p_value = survdiff(time, event.astype(int), group)
    assert ours.statistic == pytest.approx(statistic, rel=1e-9)
    assert ours.p_value == pytest.approx(p_value, rel=1e-9)
    assert ours.n_groups == n_groups


def test_log_rank_sees_a_difference_and_none():
    time = np.tile(np.arange(1.0, 21.0), 2)
    same, late = np.repeat([0, 1], 20), np.repeat(["a", "b"], 20)
    assert log_rank(time, np.ones(40), same).p_value == pytest.approx(1)
    assert log_rank(time + 15 * (late == "b"), np.ones(40), late).p_value < 1e-6


def test_censoring_counts_those_censored_after_events_of_the_same_time():
    event, time = np.array([1, 0, 0, 1], bool), np.array([2.0, 2.0, 3.0, 4.0])
    free = censoring_survival("test", event, time, np.array([1.0, 2.0, 3.0, 4.0]))
    np.testing.assert_allclose(free, [1, 2 / 3, 1 / 3, 1 / 3])


def test_bad_input_is_refused(generator):
    time, event = made(generator)
    assert kaplan_meier(time, np.zeros(len(time))).survival_U.min() == 1
    with pytest.raises(ValueError, match="all censored"):
        log_rank(time, np.zeros(len(time)), time > 3)
    with pytest.raises(ValueError, match="two groups or more"):
        log_rank(time, event, np.zeros(len(time)))
    with pytest.raises(ValueError, match="one event and one time"):
        kaplan_meier([], [])
