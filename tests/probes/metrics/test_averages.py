"""Means over folds and labels: against plain loops, under weights, and with gaps."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from anlage.probes.metrics.averages import mean_over_folds, mean_over_labels
from anlage.probes.metrics.classification import BALANCED_ACCURACY
from anlage.probes.metrics.concordance import HARRELL_C
from anlage.probes.metrics.ranking import AUROC
from anlage.probes.uncertainty.bootstrap import cluster_bootstrap


def rows(n: int = 60, *, seed: int = 0):
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, 2, n)
    score = truth * 0.5 + generator.standard_normal(n)
    return truth, score, generator.integers(0, 3, n)


def test_the_mean_is_that_of_a_loop() -> None:
    truth, score, fold = rows()
    expected = np.mean([roc_auc_score(truth[fold == f], score[fold == f]) for f in range(3)])
    assert mean_over_folds(AUROC)(truth, score, fold) == pytest.approx(expected)


def test_folds_are_never_compared_with_each_other() -> None:
    truth = np.array([0, 1, 0, 1])
    score = np.array([0.1, 0.2, 0.8, 0.9])
    assert mean_over_folds(AUROC)(truth, score, [0, 0, 1, 1]) == 1
    assert AUROC(truth, score) == 0.75


def test_weights_are_those_of_repeated_rows() -> None:
    truth, score, fold = rows()
    group = np.arange(len(truth))
    statistic = mean_over_folds(AUROC).over_groups((truth, score, fold), group, len(group))
    weight = np.random.default_rng(1).integers(0, 3, (4, len(group))).astype(float)
    for value, of_row in zip(statistic(weight), weight, strict=True):
        again = np.repeat(group, of_row.astype(int))
        found = mean_over_folds(AUROC)(truth[again], score[again], fold[again])
        assert value == pytest.approx(found)


def test_a_fold_of_one_class_is_left_out() -> None:
    truth = np.array([0, 1, 1, 1])
    score = np.array([0.1, 0.2, 0.8, 0.9])
    assert mean_over_folds(AUROC)(truth, score, [0, 0, 1, 1]) == 1


def test_no_fold_with_a_value_is_refused() -> None:
    with pytest.raises(ValueError, match="auroc: truth needs positive and negative rows"):
        mean_over_folds(AUROC)([1, 1, 0], [0.1, 0.2, 0.3], ["a", "a", "b"])


def test_a_fold_that_has_no_pair_is_left_out() -> None:
    event, time, risk = [1, 1, 1, 0], [1.0, 2.0, 3.0, 3.0], [2.0, 1.0, 0.0, 1.0]
    assert mean_over_folds(HARRELL_C)(event, time, risk, [0, 0, 1, 1]) == pytest.approx(0.5)
    assert mean_over_folds(HARRELL_C)(event, time, risk, [0, 0, 1, 2]) == 1


def test_intervals_resample_patients_of_all_folds() -> None:
    truth, score, fold = rows()
    patient = np.arange(len(truth)) // 2
    found = cluster_bootstrap(
        mean_over_folds(AUROC), (truth, score, fold), patient, n_resamples=200
    )
    assert found.n_groups == 30
    assert found.low < found.estimate < found.high


def test_labels_are_scored_where_they_are_known() -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 2, (50, 3)).astype(float)
    truth[generator.random((50, 3)) < 0.3] = np.nan
    score = generator.random((50, 3))
    of_label = []
    for label in range(3):
        known = ~np.isnan(truth[:, label])
        of_label.append(roc_auc_score(truth[known, label], score[known, label]))
    assert mean_over_labels(AUROC)(truth, score) == pytest.approx(np.mean(of_label))


def test_a_label_that_is_always_true_is_left_out() -> None:
    truth = np.array([[1.0, 0.0], [1.0, 1.0]])
    score = np.array([[0.3, 0.1], [0.2, 0.9]])
    assert mean_over_labels(AUROC)(truth, score) == 1


def test_both_means_nest() -> None:
    truth = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, np.nan], [0.0, 1.0]])
    predicted = np.array([[1, 0], [0, 0], [0, 1], [1, 1]])
    nested = mean_over_folds(mean_over_labels(BALANCED_ACCURACY))
    assert nested(truth, predicted, [0, 0, 1, 1]) == pytest.approx(
        ((1 + 0.5) / 2 + (0 + 1) / 2) / 2
    )


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one shape \(N, L\); got \(4,\)"):
        mean_over_labels(AUROC)(np.zeros(4), np.zeros(4))
    with pytest.raises(ValueError, match="fold needs one value for each of 2 rows"):
        mean_over_folds(AUROC)([0, 1], [0.1, 0.2], [0])
