import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score

from anlage.probes.metrics.classification import ACCURACY, BALANCED_ACCURACY
from anlage.probes.metrics.metric import metric_of_rows
from anlage.probes.uncertainty.bootstrap import cluster_bootstrap
from anlage.probes.uncertainty.paired import paired_bootstrap
from reference.slow_bootstrap import gathered, widened_tails

PLAIN = {"method": "percentile", "stratify": False}


@pytest.fixture
def two_models(generator):
    group = np.repeat(np.arange(25), 6)
    truth = group % 3
    hard = np.repeat(generator.random(25), 6)  # some cases are hard for both
    a = np.where(generator.random(150) > 0.8 * hard, truth, (truth + 1) % 3)
    b = np.where(generator.random(150) > hard, truth, (truth + 2) % 3)
    return truth, a, b, group


def compare(two_models, metric=BALANCED_ACCURACY, **settings):
    truth, a, b, group = two_models
    return paired_bootstrap(metric, (truth, a), (truth, b), group, **settings)


def test_is_the_slow_loop_number_for_number(two_models) -> None:
    truth, a, b, group = two_models
    values = []
    for drawn in np.random.default_rng(4).integers(25, size=(150, 25)):
        t, p, q = gathered((truth, a, b), group, drawn)
        values.append(balanced_accuracy_score(t, p) - balanced_accuracy_score(t, q))
    fast = compare(two_models, n_resamples=150, seed=4, **PLAIN)
    assert (fast.low, fast.high) == pytest.approx(tuple(np.quantile(values, widened_tails(25))))
    expected = balanced_accuracy_score(truth, a) - balanced_accuracy_score(truth, b)
    assert fast.estimate == pytest.approx(expected)


def test_t_interval_of_equal_groups_is_the_paired_t_test(two_models) -> None:
    truth, a, b, _ = two_models
    interval = compare(two_models, ACCURACY)
    by_case = ((a == truth).astype(float) - (b == truth)).reshape(25, 6).mean(1)
    expected = stats.ttest_1samp(by_case, 0).confidence_interval(0.95)
    assert (interval.t_low, interval.t_high) == pytest.approx((expected.low, expected.high))


def test_same_model_differs_by_nothing_and_order_flips_the_sign(two_models) -> None:
    truth, a, b, group = two_models
    same = compare((truth, a, a, group))
    assert (same.estimate, same.low, same.high, same.t_low, same.t_high) == (0, 0, 0, 0, 0)
    assert same.p_value == 1
    for method in ("percentile", "bca"):
        there = compare(two_models, method=method)
        back = compare((truth, b, a, group), method=method)
        assert (there.estimate, there.low) == pytest.approx((-back.estimate, -back.high))
        assert there.p_value == pytest.approx(back.p_value)


def test_pairing_narrows_the_interval(generator) -> None:
    """A model wrong wherever the other is, and on 2 % more: paired intervals see it."""
    group = np.repeat(np.arange(60), 10)
    truth = np.ones(600)
    a = np.repeat(generator.random(60) < 0.5, 10).astype(float)
    b = np.where(generator.random(600) < 0.04, 0, a)
    paired = compare((truth, a, b, group))
    single = cluster_bootstrap(BALANCED_ACCURACY, (truth, a), group)
    assert paired.low > 0
    assert paired.high - paired.low < (single.high - single.low) / 3


@pytest.mark.parametrize("method", ["percentile", "bca"])
@pytest.mark.parametrize("stratify", [True, False])
def test_p_value_is_where_the_interval_begins_to_hold_0(two_models, method, stratify) -> None:
    settings = {"method": method, "stratify": stratify, "n_resamples": 4000}
    p_value = compare(two_models, **settings).p_value
    assert 0.001 < p_value < 0.5
    narrower = compare(two_models, confidence=1 - 1.1 * p_value, **settings)
    wider = compare(two_models, confidence=1 - 0.9 * p_value, **settings)
    assert narrower.low > 0
    assert wider.low < 0


def test_p_value_of_a_clear_difference_is_the_least_that_resamples_can_show(generator) -> None:
    group, truth = np.arange(50), np.arange(50) % 2
    wrong = np.where(generator.random(50) < 0.9, 1 - truth, truth)
    two = (truth, truth, wrong, group)
    assert 0.002 <= compare(two, n_resamples=999).p_value < 0.01
    assert 0.002 <= compare(two, n_resamples=999, method="bca").p_value < 0.05


def test_metrics_without_bounds_have_open_t_intervals(generator) -> None:
    mean = metric_of_rows(lambda _, x: x.mean(), name="mean", columns=("truth", "x"))
    x = generator.normal(size=(2, 30))
    interval = paired_bootstrap(mean, (x[0], x[0]), (x[0], x[1]), np.arange(30), n_resamples=50)
    expected = stats.ttest_rel(*x).confidence_interval()
    assert (interval.t_low, interval.t_high) == pytest.approx((expected.low, expected.high))


def test_refuses_other_rows(two_models) -> None:
    truth, a, b, group = two_models
    with pytest.raises(ValueError, match="predicted needs one value for each of 150 rows"):
        paired_bootstrap(ACCURACY, (truth, a), (truth, b[:-1]), group)
    with pytest.raises(ValueError, match="truth needs to be the same for both models"):
        paired_bootstrap(ACCURACY, (truth, a), (truth[::-1], b), group)
