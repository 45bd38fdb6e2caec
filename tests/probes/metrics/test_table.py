"""What every metric of the table promises, whatever it measures."""

import numpy as np
import pytest

from anlage.probes.metrics.table import METRICS, metric_named
from reference.gathered_rows import on_gathered_rows, resample_weights

N_ROWS, N_GROUPS, N_CLASSES = 240, 12, 3
BINARY = {"auroc", "auprc", "brier"}
CUT_ONCE = {"ece_equal_mass"}  # its bins are those of all rows, not of the resample's


def columns_of(metric, generator):
    truth = generator.integers(0, N_CLASSES, N_ROWS)
    score = generator.dirichlet(np.ones(N_CLASSES), size=N_ROWS)
    score[np.arange(N_ROWS), truth] += 0.3
    score /= score.sum(axis=1, keepdims=True)
    risk = generator.normal(size=N_ROWS)
    n_shared = generator.integers(1, 50, (N_ROWS, 2))
    n_true, n_predicted = (n_shared + generator.integers(0, 9, (N_ROWS, 2)) for _ in range(2))
    columns = {
        ("true_px", "shared_px", "predicted_px"): (n_true, n_shared, n_predicted),
        ("n_true", "n_matched", "n_predicted"): (n_true, n_shared, n_predicted),
        ("n_true", "n_matched", "n_predicted", "iou_sum"): (
            *(n_true, n_shared, n_predicted),
            n_shared * generator.uniform(0.5, 1, (N_ROWS, 2)),
        ),
        ("n_true", "intersection_px", "union_px"): (n_true, 9 * n_shared, 9 * n_true + n_shared),
        ("truth", "predicted"): (truth, score.argmax(axis=1)),
        ("truth", "score"): (truth, score),
        ("truth", "predicted", "confidence"): (truth, score.argmax(axis=1), score.max(axis=1)),
        ("event", "time", "risk"): (risk > 0, generator.exponential(size=N_ROWS), risk),
    }
    if metric.name in BINARY:
        return truth % 2, score[:, 1]
    return columns[metric.columns]


every = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)


@every
def test_is_itself_on_gathered_rows(metric, generator) -> None:
    columns, group = columns_of(metric, generator), generator.integers(0, N_GROUPS, N_ROWS)
    statistic = metric.over_groups(columns, group, N_GROUPS)
    assert statistic(np.ones((1, N_GROUPS)))[0] == pytest.approx(metric(*columns), abs=1e-12)
    if metric.name not in CUT_ONCE:
        weight_RG = resample_weights(generator, N_GROUPS, 8)
        slow = on_gathered_rows(metric, columns, group, weight_RG)
        np.testing.assert_allclose(statistic(weight_RG), slow, rtol=0, atol=1e-10)


@every
def test_lies_within_its_bounds(metric, generator) -> None:
    columns, group = columns_of(metric, generator), generator.integers(0, N_GROUPS, N_ROWS)
    weight_RG = resample_weights(generator, N_GROUPS, 50)
    value_R = metric.over_groups(columns, group, N_GROUPS)(weight_RG)
    assert value_R.shape == (50,)
    assert value_R.dtype == np.float64
    assert (value_R >= metric.bounds[0]).all()
    assert (value_R <= metric.bounds[1]).all()
    assert np.ptp(value_R) > 0


@every
def test_order_of_rows_and_weightings_does_not_matter(metric, generator) -> None:
    columns, group = columns_of(metric, generator), generator.integers(0, N_GROUPS, N_ROWS)
    weight_RG = resample_weights(generator, N_GROUPS, 6)
    value_R = metric.over_groups(columns, group, N_GROUPS)(weight_RG)
    rows = generator.permutation(N_ROWS)
    moved = tuple(column[rows] for column in columns)
    again_R = metric.over_groups(moved, group[rows], N_GROUPS)(weight_RG[::-1])
    np.testing.assert_allclose(again_R[::-1], value_R, rtol=0, atol=1e-10)


@every
def test_a_group_without_rows_changes_nothing(metric, generator) -> None:
    columns, group = columns_of(metric, generator), generator.integers(0, N_GROUPS, N_ROWS)
    weight_RG = resample_weights(generator, N_GROUPS, 6)
    value_R = metric.over_groups(columns, group, N_GROUPS)(weight_RG)
    wider_RG = np.insert(weight_RG, 4, 7.0, axis=1)
    wider_R = metric.over_groups(columns, group + (group >= 4), N_GROUPS + 1)(wider_RG)
    np.testing.assert_allclose(wider_R, value_R, rtol=0, atol=1e-10)


@every
def test_too_few_columns_and_short_columns_are_named(metric, generator) -> None:
    columns = columns_of(metric, generator)
    with pytest.raises(ValueError, match=f"{metric.name}: needs the columns"):
        metric(*columns[:-1])
    with pytest.raises(ValueError, match=metric.name):
        metric(*columns[:-1], columns[-1][:-1])
    with pytest.raises(ValueError, match="single value"):
        metric(*columns[:-1], 0.5)


def test_a_name_that_is_none_gets_the_nearest() -> None:
    assert metric_named("auroc_ovr") is METRICS["auroc_ovr"]
    with pytest.raises(ValueError, match="Did you mean 'balanced_accuracy'"):
        metric_named("balanced_acuracy")
    with pytest.raises(ValueError, match="needs one of accuracy, .* got 'zzz'. Choose"):
        metric_named("zzz")
