import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score

from anlage.probes.uncertainty.bootstrap import cluster_bootstrap
from anlage.probes.uncertainty.paired import paired_bootstrap


@pytest.fixture
def two_models(generator):
    group = np.repeat(np.arange(25), 6)
    truth = group % 3
    hard = np.repeat(generator.random(25), 6)  # some cases are hard for both
    a = np.where(generator.random(150) > 0.8 * hard, truth, (truth + 1) % 3)
    b = np.where(generator.random(150) > hard, truth, (truth + 2) % 3)
    return truth, a, b, group


def test_is_the_slow_loop_number_for_number(two_models) -> None:
    truth, a, b, group = two_models
    values = []
    for row in np.random.default_rng(4).integers(25, size=(150, 25)):
        tiles = np.concatenate([np.flatnonzero(group == g) for g in row])
        values.append(
            balanced_accuracy_score(truth[tiles], a[tiles])
            - balanced_accuracy_score(truth[tiles], b[tiles])
        )
    fast = paired_bootstrap(*two_models, n_resamples=150, seed=4)
    assert (fast.low, fast.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))
    expected = balanced_accuracy_score(truth, a) - balanced_accuracy_score(truth, b)
    assert fast.estimate == pytest.approx(expected)


def test_t_interval_of_equal_groups_is_the_paired_t_test(two_models) -> None:
    truth, a, b, group = two_models
    interval = paired_bootstrap(truth, a, b, group, metric="accuracy")
    by_case = ((a == truth).astype(float) - (b == truth)).reshape(25, 6).mean(1)
    expected = stats.ttest_1samp(by_case, 0).confidence_interval(0.95)
    assert (interval.t_low, interval.t_high) == pytest.approx((expected.low, expected.high))


def test_same_model_differs_by_nothing_and_order_flips_the_sign(two_models) -> None:
    truth, a, b, group = two_models
    same = paired_bootstrap(truth, a, a, group)
    assert (same.estimate, same.low, same.high, same.t_low, same.t_high) == (0, 0, 0, 0, 0)
    there, back = paired_bootstrap(truth, a, b, group), paired_bootstrap(truth, b, a, group)
    assert (there.estimate, there.low) == pytest.approx((-back.estimate, -back.high))


def test_pairing_narrows_the_interval(generator) -> None:
    """A model wrong wherever the other is, and on 2 % more: paired intervals see it."""
    group = np.repeat(np.arange(60), 10)
    truth = np.ones(600)
    a = np.repeat(generator.random(60) < 0.5, 10).astype(float)
    b = np.where(generator.random(600) < 0.04, 0, a)
    paired = paired_bootstrap(truth, a, b, group)
    single = cluster_bootstrap(truth, a, group)
    assert paired.low > 0
    assert paired.high - paired.low < (single.high - single.low) / 3


def test_refuses_other_lengths(two_models) -> None:
    truth, a, b, group = two_models
    with pytest.raises(ValueError, match="predicted needs one value for each of 150 rows"):
        paired_bootstrap(truth, a, b[:-1], group)
