import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from anlage.probes.metrics import correlation
from anlage.probes.metrics.correlation import (
    MEAN_ABSOLUTE_ERROR,
    MEAN_SQUARED_ERROR,
    PEARSON,
    R2,
    SPEARMAN,
    pearson_of_targets,
    r2_of_targets,
    spearman_of_targets,
)

ALL = (PEARSON, SPEARMAN, R2, MEAN_ABSOLUTE_ERROR, MEAN_SQUARED_ERROR)


def made(generator, n_targets=4, n_rows=80):
    truth = generator.normal(size=(n_rows, n_targets)).round(1)  # rounded: ties
    return truth, (truth + generator.normal(size=truth.shape)).round(1) + 100


def test_equals_scipy_and_scikit_learn(generator):
    truth, predicted = made(generator)
    pairs = list(zip(truth.T, predicted.T, strict=True))
    pearson = [stats.pearsonr(*pair).statistic for pair in pairs]
    spearman = [stats.spearmanr(*pair).statistic for pair in pairs]
    np.testing.assert_allclose(pearson_of_targets(truth, predicted), pearson, atol=1e-12)
    np.testing.assert_allclose(spearman_of_targets(truth, predicted), spearman, atol=1e-12)
    r2 = sklearn_metrics.r2_score(truth, predicted, multioutput="raw_values")
    np.testing.assert_allclose(r2_of_targets(truth, predicted), r2, rtol=1e-12)
    assert PEARSON(truth, predicted) == pytest.approx(np.mean(pearson))
    assert R2(truth, predicted) == pytest.approx(np.mean(r2))
    absolute = sklearn_metrics.mean_absolute_error(truth, predicted)
    assert MEAN_ABSOLUTE_ERROR(truth, predicted) == pytest.approx(absolute)
    squared = sklearn_metrics.mean_squared_error(truth, predicted)
    assert MEAN_SQUARED_ERROR(truth, predicted) == pytest.approx(squared)


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)
@pytest.mark.parametrize("block_values", [1, 4_000_000])
def test_weights_are_repeats_of_groups(generator, monkeypatch, metric, block_values):
    monkeypatch.setattr(correlation, "BLOCK_VALUES", block_values)
    truth, predicted = made(generator)
    code = generator.permutation(np.arange(80) % 13)
    weight = generator.integers(0, 4, (5, 13)).astype(float)
    values = metric.over_groups((truth, predicted), code, 13)(weight)
    for value, weight_G in zip(values, weight, strict=True):
        rows = np.repeat(np.arange(80), weight_G[code].astype(int))
        assert value == pytest.approx(metric(truth[rows], predicted[rows]), rel=1e-10)
        assert metric(truth[rows, 0], predicted[rows, 0]) == pytest.approx(
            metric(truth[rows, :1], predicted[rows, :1])
        )


def test_one_constant_target_makes_the_mean_undefined_as_in_hest(generator):
    truth, predicted = made(generator)
    predicted[:, 2] = 0.1
    assert np.isnan(PEARSON(truth, predicted))
    assert np.isnan(SPEARMAN(truth, predicted))
    assert R2(truth, predicted) < 0
    np.testing.assert_array_equal(np.isnan(pearson_of_targets(truth, predicted)), [0, 0, 1, 0])
    np.testing.assert_array_equal(np.isnan(spearman_of_targets(truth, predicted)), [0, 0, 1, 0])
    truth[:, 1] = 1e6 + 0.1
    np.testing.assert_array_equal(np.isnan(r2_of_targets(truth, predicted)), [0, 1, 0, 0])
    assert np.isfinite(MEAN_ABSOLUTE_ERROR(truth, predicted))


def test_a_resample_of_one_value_is_undefined():
    truth = np.array([0.1, 0.1, 0.1, 7.3, 9.1])
    code = np.array([0, 0, 1, 2, 2])
    weight = np.array([[1.0, 2, 0], [1, 0, 1], [0, 0, 0]])
    for metric in (PEARSON, SPEARMAN, R2):
        value = metric.over_groups((truth, truth + 1), code, 3)(weight)
        np.testing.assert_array_equal(np.isnan(value), [True, False, True])


def test_bounds_and_ends(generator):
    truth, predicted = made(generator)
    assert PEARSON(truth, 3 * truth - 8) == pytest.approx(1)
    assert SPEARMAN(truth, -(truth**3)) == pytest.approx(-1)
    assert R2(truth, truth) == 1
    for metric in ALL:
        assert metric.bounds[0] <= metric(truth, predicted) <= metric.bounds[1]
    assert not MEAN_ABSOLUTE_ERROR.is_better_larger


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)
def test_bad_columns_are_refused(generator, metric):
    truth, predicted = made(generator)
    with pytest.raises(ValueError, match="one non-empty shape"):
        metric(truth, predicted[1:])
    with pytest.raises(ValueError, match="one non-empty shape"):
        metric(np.empty((0, 2)), np.empty((0, 2)))
    predicted[3, 1] = np.inf
    with pytest.raises(ValueError, match="predicted needs finite numbers; got 1 "):
        metric(truth, predicted)
