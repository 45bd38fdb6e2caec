import numpy as np
import pytest
import torch
from sklearn import metrics as oracle

from anlage.probes.metrics.classification import (
    ACCURACY,
    BALANCED_ACCURACY,
    MACRO_F1,
    MACRO_PRECISION,
    MACRO_RECALL,
    WEIGHTED_F1,
    confusion_matrix,
    truth_codes,
)
from reference.gathered_rows import on_gathered_rows, resample_weights

# N rows, G groups, R weightings.


def averaged(score, average):
    return lambda *columns: score(*columns, average=average, zero_division=0)


ORACLES = [
    (ACCURACY, oracle.accuracy_score),
    (BALANCED_ACCURACY, oracle.balanced_accuracy_score),
    (MACRO_F1, averaged(oracle.f1_score, "macro")),
    (WEIGHTED_F1, averaged(oracle.f1_score, "weighted")),
    (MACRO_PRECISION, averaged(oracle.precision_score, "macro")),
    (MACRO_RECALL, averaged(oracle.recall_score, "macro")),
]


@pytest.fixture
def predictions(generator):
    """Six classes, rare ones held by few groups, and a seventh that is only predicted."""
    group = generator.integers(0, 12, 300)
    truth = np.where(group < 2, 5, generator.integers(0, 5, 300))
    guess = np.where(generator.random(300) < 0.6, truth, generator.integers(0, 7, 300))
    return truth, guess, group


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
@pytest.mark.parametrize(
    ("metric", "expected"), ORACLES, ids=lambda value: getattr(value, "name", "")
)
def test_is_scikit_learns_under_every_weighting(metric, expected, predictions, generator) -> None:
    truth, guess, group = predictions
    assert metric(truth, guess) == pytest.approx(expected(truth, guess), abs=1e-12)
    weight_RG = resample_weights(generator, 12, 40)
    assert (weight_RG[:, :2].sum(axis=1) == 0).any(), "a resample lacks the rare class"
    got = metric.over_groups((truth, guess), group, 12)(weight_RG)
    slow = on_gathered_rows(expected, (truth, guess), group, weight_RG)
    np.testing.assert_allclose(got, slow, atol=1e-12)


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
def test_fractional_weights_are_scikit_learns_sample_weights(predictions, generator) -> None:
    truth, guess, group = predictions
    weight_RG = generator.random((3, 12))
    got = WEIGHTED_F1.over_groups((truth, guess), group, 12)(weight_RG)
    expected = [
        oracle.f1_score(
            truth, guess, average="weighted", sample_weight=weight[group], zero_division=0
        )
        for weight in weight_RG
    ]
    np.testing.assert_allclose(got, expected, atol=1e-12)


@pytest.mark.parametrize("metric", [metric for metric, _ in ORACLES], ids=lambda m: m.name)
def test_names_and_tensors_give_the_same(metric, predictions) -> None:
    truth, guess, _ = predictions
    names = np.array(list("gfedcba"))
    value = metric(truth, guess)
    assert metric(names[truth], names[guess]) == pytest.approx(value, abs=1e-12)
    assert metric(names[truth].tolist(), names[guess].astype(object)) == pytest.approx(value)
    text = np.dtypes.StringDType()
    assert metric(names[truth].astype(text), names[guess]) == pytest.approx(value, abs=1e-12)
    assert metric(torch.from_numpy(truth), torch.from_numpy(guess)) == value


@pytest.mark.parametrize("metric", [metric for metric, _ in ORACLES], ids=lambda m: m.name)
def test_no_weight_has_no_value(metric, predictions) -> None:
    truth, guess, group = predictions
    assert np.isnan(metric.over_groups((truth, guess), group, 12)(np.zeros((1, 12)))).all()


def test_known_values() -> None:
    truth, guess = ["a"] * 8 + ["b"] * 2, ["a"] * 9 + ["b"]
    assert BALANCED_ACCURACY(truth, guess) == 0.75
    assert ACCURACY(truth, guess) == 0.9
    assert MACRO_F1(truth, guess) == pytest.approx((16 / 17 + 2 / 3) / 2)
    assert BALANCED_ACCURACY(truth, ["a"] * 10) == 0.5  # always the majority: chance


def test_confusion_matrix_is_scikit_learns(predictions) -> None:
    truth, guess, _ = predictions
    got = confusion_matrix(truth, guess)
    assert got.class_C.tolist() == list(range(7))
    np.testing.assert_array_equal(got.count_CC, oracle.confusion_matrix(truth, guess))


def test_truth_codes_are_places_among_the_classes() -> None:
    assert truth_codes(["b", "c", "b"], ["c", "a", "b"]).tolist() == [2, 0, 2]
    assert truth_codes(np.array([7, 3]), np.array([3, 7])).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: truth_codes(["b", "z", "y"], ["a", "b"]), r"got \['y', 'z'\] in 2 rows"),
        (lambda: truth_codes(["b"], ["b", "b"]), "each class once"),
        (lambda: truth_codes([1], ["1"]), "labels of one kind"),
        (lambda: ACCURACY([], []), "needs a non-empty list"),
        (lambda: ACCURACY([1, 2], [1]), "predicted needs one value for each of 2 rows"),
        (lambda: ACCURACY([1, 2], ["1", "2"]), "labels of one kind"),
        (lambda: MACRO_F1([1, np.nan], [1, 2]), "needs a value in each row; got none in 1"),
        (lambda: MACRO_F1([1, 2]), r"needs the columns \('truth', 'predicted'\); got 1"),
    ],
)
def test_refuses(call, match) -> None:
    with pytest.raises(ValueError, match=match):
        call()
