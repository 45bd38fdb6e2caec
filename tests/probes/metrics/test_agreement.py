import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from anlage.probes.metrics.agreement import (
    COHEN_KAPPA,
    LINEAR_KAPPA,
    QUADRATIC_KAPPA,
    kappa_metric,
)
from reference.gathered_rows import on_gathered_rows, resample_weights

N_GROUPS = 12
KAPPAS = [(QUADRATIC_KAPPA, "quadratic"), (LINEAR_KAPPA, "linear"), (COHEN_KAPPA, None)]


@pytest.fixture
def grades(generator):
    """ISUP grades 0 to 5, grade 3 only in two groups, often one off."""
    group = generator.integers(0, N_GROUPS, 300)
    truth = generator.choice([0, 1, 2, 4, 5], 300)
    truth[group < 2] = 3
    guess = np.clip(truth + generator.integers(-1, 2, 300), 0, 5)
    return truth, guess, group


@pytest.mark.parametrize(("metric", "weights"), KAPPAS, ids=lambda v: getattr(v, "name", ""))
def test_is_scikit_learns_of_all_grades(metric, weights, grades, generator) -> None:
    truth, guess, group = grades

    def slow(truth, guess):
        return cohen_kappa_score(truth, guess, weights=weights, labels=range(6))

    assert metric(truth, guess) == pytest.approx(slow(truth, guess), abs=1e-12)
    weight_RG = resample_weights(generator, N_GROUPS, 40)
    assert (weight_RG[:, :2].sum(axis=1) == 0).any(), "a resample lacks grade 3"
    got = metric.over_groups((truth, guess), group, N_GROUPS)(weight_RG)
    expected = on_gathered_rows(slow, (truth, guess), group, weight_RG)
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_a_grade_that_nobody_has_still_lies_between() -> None:
    """scikit-learn's default closes the gap, and gives another kappa."""
    truth, guess = [0, 0, 1, 5, 5, 1], [0, 1, 1, 5, 1, 1]
    full = cohen_kappa_score(truth, guess, weights="quadratic", labels=range(6))
    closed = cohen_kappa_score(truth, guess, weights="quadratic")
    assert QUADRATIC_KAPPA(truth, guess) == pytest.approx(full, abs=1e-12)
    assert closed - full > 0.04


def test_published_example() -> None:
    """Fleiss, Levin and Paik 2003, Statistical Methods for Rates and Proportions, table 18.1."""
    counts = np.array([[75, 1, 4], [5, 4, 1], [0, 0, 10]])
    truth, guess = (np.repeat(index.ravel(), counts.ravel()) for index in np.indices((3, 3)))
    assert COHEN_KAPPA(truth, guess) == pytest.approx(0.676, abs=5e-4)


def test_known_values() -> None:
    assert QUADRATIC_KAPPA([0, 1, 2], [0, 1, 2]) == 1
    assert QUADRATIC_KAPPA([0, 1, 2], [2, 1, 0]) == -1
    assert QUADRATIC_KAPPA([0, 0, 1, 1], [0, 1, 0, 1]) == 0
    assert QUADRATIC_KAPPA([0.0, 1.0, 2.0], np.array([0, 1, 2])) == 1


def test_order_that_is_given() -> None:
    order = ("benign", "low", "high")
    metric = kappa_metric("dysplasia", weighting="quadratic", order_C=order)
    codes = np.array([[0, 0, 1, 2, 2, 1], [0, 1, 1, 2, 0, 1]])
    names = np.array(order)[codes]
    assert metric(*names) == pytest.approx(QUADRATIC_KAPPA(*codes), abs=1e-12)
    assert COHEN_KAPPA(*names) == pytest.approx(COHEN_KAPPA(*codes), abs=1e-12)


def test_no_value_when_weights_leave_one_class() -> None:
    columns = (np.array([0, 1, 2]), np.array([0, 2, 1]))
    got = QUADRATIC_KAPPA.over_groups(columns, np.arange(3), 3)(np.eye(3)[[0, 1]])
    np.testing.assert_array_equal(got, [np.nan, 0])


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: QUADRATIC_KAPPA(["a", "b"], ["a", "b"]), "whose order would be a guess"),
        (lambda: LINEAR_KAPPA([0.5, 1], [1, 1]), "integers"),
        (lambda: QUADRATIC_KAPPA([2, 2], [2, 2]), "2 to 1000 classes; got 1"),
        (lambda: COHEN_KAPPA(["a", "a"], ["a", "a"]), "2 to 1000 classes; got 1"),
        (lambda: QUADRATIC_KAPPA(np.arange(1001), np.arange(1001)), "got 1001"),
        (lambda: QUADRATIC_KAPPA([1, 2], [1]), "each of 2 rows"),
        (
            lambda: kappa_metric("k", weighting="linear", order_C=("x", "y"))(["x"], ["z"]),
            r"got \['z'\]",
        ),
    ],
)
def test_refuses(call, match) -> None:
    with pytest.raises(ValueError, match=match):
        call()
