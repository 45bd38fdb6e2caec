from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from anlage.probes.metrics.calibration import (
    BRIER,
    BRIER_MULTICLASS,
    ECE,
    ECE_CLASSWISE,
    ECE_EQUAL_MASS,
    LOG_LOSS,
    MCE,
    calibration_error_metric,
    reliability_curve,
)
from reference.gathered_rows import on_gathered_rows, resample_weights

N_GROUPS = 10


@pytest.fixture
def probabilities(generator):
    truth = generator.integers(0, 4, 500)
    logit = generator.normal(size=(500, 4)) * 2
    logit[np.arange(500), truth] += 1
    score = np.exp(logit) / np.exp(logit).sum(axis=1, keepdims=True)
    return truth, score, generator.integers(0, N_GROUPS, 500)


def torchmetrics_error(n_bins, norm):
    def value(truth, score):
        error = multiclass_calibration_error(
            torch.from_numpy(score), torch.from_numpy(truth), 4, n_bins=n_bins, norm=norm
        )
        return float(error)

    return value


def same_under_weights(metric, slow, columns, group, generator, *, atol=1e-12) -> None:
    weight_RG = resample_weights(generator, N_GROUPS, 12)
    got = metric.over_groups(columns, group, N_GROUPS)(weight_RG)
    np.testing.assert_allclose(
        got, on_gathered_rows(slow, columns, group, weight_RG), rtol=0, atol=atol
    )
    assert np.isnan(metric.over_groups(columns, group, N_GROUPS)(np.zeros((1, N_GROUPS)))).all()


@pytest.mark.parametrize("n_bins", [1, 7, 15])
@pytest.mark.parametrize("norm", ["l1", "max"])
def test_equal_width_is_torchmetrics(n_bins, norm, probabilities, generator) -> None:
    truth, score, group = probabilities
    metric = calibration_error_metric("error", n_bins=n_bins, is_largest=norm == "max")
    slow = torchmetrics_error(n_bins, norm)
    assert metric(truth, score) == pytest.approx(slow(truth, score), abs=1e-6)  # its float32
    same_under_weights(metric, slow, (truth, score), group, generator, atol=1e-6)


def slow_error(confidence, right, edges):
    """One bin after another, as the papers write it."""
    error = 0.0
    for low, high in pairwise(edges):
        rows = (confidence > low) & (confidence <= high) | (confidence == low) & (low == edges[0])
        if rows.any():
            error += rows.mean() * abs(right[rows].mean() - confidence[rows].mean())
    return error


def test_equal_mass_bins_are_cut_once(probabilities, generator) -> None:
    truth, score, group = probabilities
    edges = np.quantile(score.max(axis=1), np.linspace(0, 1, 16))
    counts = np.histogram(score.max(axis=1), edges)[0]
    assert counts.max() - counts.min() <= 2

    def slow(truth, score):
        return slow_error(score.max(axis=1), score.argmax(axis=1) == truth, edges)

    assert ECE_EQUAL_MASS(truth, score) == pytest.approx(slow(truth, score), abs=1e-12)
    same_under_weights(ECE_EQUAL_MASS, slow, (truth, score), group, generator)


def test_classwise_is_the_mean_over_columns(probabilities, generator) -> None:
    truth, score, group = probabilities
    edges = np.linspace(0, 1, 16)

    def slow(truth, score):
        return np.mean([slow_error(score[:, c], truth == c, edges) for c in range(4)])

    assert ECE_CLASSWISE(truth, score) == pytest.approx(slow(truth, score), abs=1e-12)
    same_under_weights(ECE_CLASSWISE, slow, (truth, score), group, generator)


def test_hand_example_with_a_confidence_on_an_edge() -> None:
    """Of four bins 0.75 belongs to (0.5, 0.75]; torchmetrics puts it one bin higher."""
    score = np.array([[0.75, 0.25], [0.7, 0.3], [0.2, 0.8], [1.0, 0.0]])
    truth = np.array([0, 1, 1, 0])
    metric = calibration_error_metric("ece", n_bins=4)
    lower, upper = abs(1 / 2 - 1.45 / 2), abs(2 / 2 - 1.8 / 2)
    assert metric(truth, score) == pytest.approx((lower + upper) / 2)
    largest = calibration_error_metric("mce", n_bins=4, is_largest=True)
    assert largest(truth, score) == pytest.approx(lower)


def test_all_sure_and_right_or_wrong() -> None:
    sure = np.array([[1.0, 0], [1.0, 0]])
    for metric in (ECE, ECE_EQUAL_MASS, ECE_CLASSWISE, MCE, BRIER_MULTICLASS):
        assert metric([0, 0, 1], [*sure, [0.0, 1.0]]) == 0
    assert ECE([0, 1], sure) == ECE_EQUAL_MASS([0, 1], sure) == MCE([0, 1], sure) == 0.5
    assert BRIER_MULTICLASS([0, 1], sure) == 1
    assert BRIER_MULTICLASS([1, 1], sure) == 2


def test_brier_and_log_loss_are_scikit_learns(probabilities, generator) -> None:
    truth, score, group = probabilities

    def slow_brier(truth, score):
        return brier_score_loss(truth, score, labels=range(4))

    def slow_log(truth, score):
        return log_loss(truth, score, labels=range(4))

    for metric, slow in ((BRIER_MULTICLASS, slow_brier), (LOG_LOSS, slow_log)):
        assert metric(truth, score) == pytest.approx(slow(truth, score), abs=1e-12)
        same_under_weights(metric, slow, (truth, score), group, generator)


def test_binary_brier_and_log_loss_are_scikit_learns(generator) -> None:
    score = generator.random(300)
    truth, group = generator.random(300) < score, generator.integers(0, N_GROUPS, 300)
    columns = (truth.astype(int), score)
    for metric, slow in ((BRIER, brier_score_loss), (LOG_LOSS, log_loss)):
        assert metric(*columns) == pytest.approx(slow(*columns), abs=1e-12)
        same_under_weights(metric, slow, columns, group, generator)
    both = np.stack([1 - score, score], axis=1)
    assert BRIER_MULTICLASS(columns[0], both) == pytest.approx(2 * BRIER(*columns), abs=1e-12)


def test_fractional_weights_are_sample_weights(probabilities, generator) -> None:
    truth, score, group = probabilities
    weight_G = generator.random(N_GROUPS)
    got = LOG_LOSS.over_groups((truth, score), group, N_GROUPS)(weight_G[None])
    expected = log_loss(truth, score, sample_weight=weight_G[group])
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_log_loss_of_a_sure_error_is_finite() -> None:
    for dtype in (np.float32, np.float64):
        sure = np.array([[1, 0], [0, 1]], dtype=dtype)
        assert LOG_LOSS([1, 1], sure) == pytest.approx(log_loss([1, 1], sure, labels=[0, 1]))


def test_probabilities_that_tell_the_truth_have_a_small_error(generator) -> None:
    chance = generator.random(20_000)
    truth = (generator.random(20_000) < chance).astype(int)
    honest = np.stack([1 - chance, chance], axis=1)
    assert ECE(truth, honest) < 0.02
    boast = np.stack([chance < 0.5, chance >= 0.5], axis=1).astype(float)
    assert ECE(truth, boast) == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("binning", ["width", "mass"])
def test_reliability_curve_adds_up_to_the_error(binning, probabilities) -> None:
    truth, score, _ = probabilities
    curve = reliability_curve(truth, score, binning=binning)
    metric = calibration_error_metric("ece", binning=binning)
    gap = np.nan_to_num(np.abs(curve.accuracy_B - curve.confidence_B))
    assert (curve.n_B * gap).sum() / 500 == pytest.approx(metric(truth, score), abs=1e-12)
    assert curve.n_B.sum() == 500
    assert len(curve.edge_B1) == len(curve.n_B) + 1
    full = curve.n_B > 0
    assert (curve.confidence_B[full] > curve.edge_B1[:-1][full] - 1e-12).all()
    assert (curve.confidence_B[full] <= curve.edge_B1[1:][full] + 1e-12).all()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: ECE([0, 1], [[0.5, 0.6], [0.5, 0.5]]), "sum to 1 in each row; got 1.1 in row 0"),
        (lambda: ECE([0, 1], [[-2.0, 3.0], [0.5, 0.5]]), "got -2 to 3. Turn logits"),
        (lambda: ECE([0, 1], [0.5, 0.5]), "column for each"),
        (lambda: BRIER([0, 1], [0.5, 1.5]), "probabilities, 0 to 1"),
        (lambda: BRIER([0, 2], [0.5, 0.5]), "needs 0 and 1"),
        (lambda: LOG_LOSS([0, 1], [[np.nan, 0.5], [0.5, 0.5]]), "finite"),
        (lambda: calibration_error_metric("e", n_bins=0)([0, 1], np.eye(2)), "one bin or more"),
        (lambda: reliability_curve([0, 1], np.eye(2), n_bins=0), "one bin or more"),
    ],
)
def test_refuses(call, match) -> None:
    with pytest.raises(ValueError, match=match):
        call()
