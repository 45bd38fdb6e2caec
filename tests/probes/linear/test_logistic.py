import logging
import warnings

import numpy as np
import pytest
from scipy.optimize import minimize

from anlage.probes.linear import logistic as linear
from anlage.probes.linear.logistic import linear_probe


def objective_minimum(train, label, test, cost, weight=None):
    """Minimise the documented objective with a general solver, gradient by hand."""
    mean, std = train.mean(0), train.std(0)
    x = (train - mean) / np.where(std > 0, std, 1)
    classes, code = np.unique(label, return_inverse=True)
    one_hot = np.eye(len(classes))[code]
    row_weight = np.ones(len(x)) if weight is None else weight[code]
    shape = (x.shape[1] + 1, len(classes))

    def value(flat):
        w = flat.reshape(shape)
        logit = x @ w[:-1] + w[-1]
        top = logit.max(1, keepdims=True)
        log_p = logit - top - np.log(np.exp(logit - top).sum(1, keepdims=True))
        residual = row_weight[:, None] * (np.exp(log_p) - one_hot)
        loss = -cost * (row_weight * (one_hot * log_p).sum(1)).sum() + (w[:-1] ** 2).sum() / 2
        gradient = cost * np.vstack([x.T @ residual, residual.sum(0)])
        gradient[:-1] += w[:-1]
        return loss, gradient.ravel()

    solved = minimize(value, np.zeros(shape).ravel(), jac=True, method="BFGS", tol=1e-8)
    w = solved.x.reshape(shape)
    logit = (test - mean) / np.where(std > 0, std, 1) @ w[:-1] + w[-1]
    p = np.exp(logit - logit.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


@pytest.fixture
def three_classes(generator):
    label = np.repeat([0, 1, 2], [40, 20, 10])
    train = generator.normal(size=(70, 4)) * [1, 100, 0.01, 1] + label[:, None] * [1, 0, 0.01, 0]
    train[:, 3] = 5.0  # constant on the train side
    test = generator.normal(size=(25, 4)) * [1, 100, 0.01, 1]
    return train, label, test


@pytest.mark.parametrize("cost", [0.1, 2.0])
@pytest.mark.parametrize("balance", [False, True])
def test_probabilities_minimise_the_documented_objective(three_classes, cost, balance) -> None:
    train, label, test = three_classes
    weight = len(label) / (3 * np.bincount(label)) if balance else None
    expected = objective_minimum(train, label, test, cost, weight)
    prediction = linear_probe(train, label, test, cost=cost, balance_classes=balance)
    np.testing.assert_allclose(prediction.score_NC, expected, atol=2e-3)
    np.testing.assert_array_equal(prediction.label_N, prediction.score_NC.argmax(1))
    assert prediction.has_converged


def test_scale_and_offset_of_a_feature_do_not_matter(three_classes) -> None:
    train, label, test = three_classes
    scale, offset = np.array([3.0, 0.01, 50, 1]), np.array([5.0, -3, 0, 2])
    plain = linear_probe(train, label, test).score_NC
    moved = linear_probe(train * scale + offset, label, test * scale + offset).score_NC
    np.testing.assert_allclose(plain, moved, atol=1e-3)


def test_balancing_lifts_the_rare_class(three_classes) -> None:
    train, label, test = three_classes
    plain = linear_probe(train, label, test).score_NC[:, 2].mean()
    assert linear_probe(train, label, test, balance_classes=True).score_NC[:, 2].mean() > plain


def test_test_rows_do_not_influence_each_other(three_classes) -> None:
    train, label, test = three_classes
    whole = linear_probe(train, label, test).score_NC
    np.testing.assert_allclose(linear_probe(train, label, test[:1]).score_NC, whole[:1], rtol=1e-9)


def test_an_unfinished_solution_is_named(three_classes, monkeypatch, caplog) -> None:
    monkeypatch.setattr(linear, "MAX_ITERATIONS", 1)
    with caplog.at_level(logging.WARNING):
        prediction = linear_probe(*three_classes, cost=100)
    assert not prediction.has_converged
    assert "not converged after 1 iterations" in caplog.text


def test_only_the_warning_of_convergence_is_taken(three_classes, monkeypatch) -> None:
    """What else the solver has to say reaches the caller."""
    fit = linear.LogisticRegression.fit

    def warns(self, *args):
        warnings.warn("this will change", FutureWarning, stacklevel=1)
        warnings.warn("stopped early", linear.ConvergenceWarning, stacklevel=1)
        return fit(self, *args)

    monkeypatch.setattr(linear.LogisticRegression, "fit", warns)
    with pytest.warns(FutureWarning, match="this will change") as seen:
        prediction = linear_probe(*three_classes)
    assert [str(warning.message) for warning in seen] == ["this will change"]
    assert not prediction.has_converged


@pytest.mark.parametrize("cost", [0, -1, np.nan, np.inf])
def test_refuses_a_cost_that_is_none(three_classes, cost) -> None:
    with pytest.raises(ValueError, match="cost needs to be finite and > 0"):
        linear_probe(*three_classes, cost=cost)


def test_refuses_one_class_and_nan(three_classes) -> None:
    train, label, test = three_classes
    with pytest.raises(ValueError, match="linear_probe: the train side needs two classes"):
        linear_probe(train, label * 0, test)
    test[3, 2] = np.nan
    with pytest.raises(ValueError, match="NaN or an infinity in 1 of 25 rows, the first is row 3"):
        linear_probe(train, label, test)
