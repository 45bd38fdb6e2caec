import logging

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from anlage.probes.linear.logistic import logistic_probe


def objective_value(train, code, weight, bias, cost):
    """What scikit-learn minimises, in float64; ``weight`` (C, D)."""
    logit = train.astype(np.float64) @ weight.astype(np.float64).T + bias
    logit -= logit.max(1, keepdims=True)
    log_p = logit - np.log(np.exp(logit).sum(1, keepdims=True))
    square = ((weight[1] - weight[0]) ** 2 if len(weight) == 2 else weight**2).sum()
    return -cost * log_p[np.arange(len(code)), code].sum() + square / 2


def both_weights(model):
    """scikit-learn's weights and biases, one row a class for two classes as well."""
    if len(model.coef_) > 1:
        return model.coef_, model.intercept_
    return np.vstack([-model.coef_, model.coef_]) / 2, np.array([-1, 1]) * model.intercept_ / 2


def clusters(generator, n_rows, width, n_classes, *, spread):
    code = generator.integers(n_classes, size=n_rows)
    code[:n_classes] = np.arange(n_classes)
    centre = generator.normal(size=(n_classes, width)) * spread
    return centre[code] + generator.normal(size=(n_rows, width)), code


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
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 1e-4)):
        head = logistic_probe(train, label, cost=cost, balance_classes=balance, dtype=dtype)
        prediction = head.predict(test)
        np.testing.assert_allclose(prediction.score_NC, expected, atol=tolerance)
        np.testing.assert_array_equal(prediction.label_N, prediction.score_NC.argmax(1))
        assert prediction.has_converged


CASES = {
    "three classes": (300, 20, 3, 0.3, 1.0),
    "two classes": (300, 20, 2, 0.2, 1.0),
    "strong penalty": (300, 20, 4, 0.3, 1e-4),
    "separable": (200, 30, 4, 3.0, 100.0),
    "wider than long": (60, 150, 3, 0.2, 10.0),
    "many classes": (600, 20, 30, 0.5, 1.0),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("solver", ["lbfgs", "newton-cholesky"])
def test_is_scikit_learns_optimum_or_better(generator, case, solver) -> None:
    n_rows, width, n_classes, spread, cost = CASES[case]
    if solver == "newton-cholesky" and (width + 1) * n_classes > 500:
        solver = "newton-cg"
    train, code = clusters(generator, n_rows, width, n_classes, spread=spread)
    train = train.astype(np.float32).astype(np.float64)
    theirs = LogisticRegression(C=cost, solver=solver, tol=1e-10, max_iter=20_000).fit(train, code)
    least = objective_value(train, code, *both_weights(theirs), cost)
    # L-BFGS of scipy stops at a value that no longer falls, short of 1e-7 in probabilities
    reached = {"lbfgs": 1e-5, "newton-cg": 1e-6, "newton-cholesky": 1e-7}[solver]
    for dtype, tolerance in ((torch.float64, reached), (torch.float32, 1e-4)):
        head = logistic_probe(train, code, cost=cost, standardise=False, dtype=dtype)
        assert head.has_converged
        ours = objective_value(train, code, head.weight_CD.numpy(), head.bias_C.numpy(), cost)
        assert ours <= least * (1 + 1e-6)
        scores = head.predict(train).score_NC
        np.testing.assert_allclose(scores, theirs.predict_proba(train), atol=tolerance)


def test_conditions_that_are_hard(generator) -> None:
    """Scales over six decades, an offset, a constant column, a class of five in two thousand."""
    train, code = clusters(generator, 2000, 12, 3, spread=0.5)
    code[code == 0] = 1
    code[:5] = 0
    train = train * np.logspace(-3, 3, 12) + 10
    train[:, 4] = 7.0
    theirs = LogisticRegression(C=5.0, solver="newton-cholesky", tol=1e-12).fit(train, code)
    head = logistic_probe(train, code, cost=5.0, standardise=False, dtype=torch.float64)
    assert head.has_converged
    scores = head.predict(train).score_NC
    np.testing.assert_allclose(scores, theirs.predict_proba(train), atol=1e-7)


def test_gradient_is_zero_at_float64s_solution(generator) -> None:
    """The optimality conditions, computed apart from the solver."""
    train, code = clusters(generator, 500, 90, 12, spread=0.2)  # too large for one dense Hessian
    cost = 3.0
    head = logistic_probe(train, code, cost=cost, standardise=False, dtype=torch.float64)
    excess = head.predict(train).score_NC - np.eye(12)[code]
    gradient = cost * excess.T @ train + head.weight_CD.numpy()
    first = cost * (np.bincount(code) / len(code) - np.eye(12)[code]).T @ train
    assert np.abs(gradient).max() < 1e-6 * np.abs(first).max()
    assert np.abs(excess.sum(0)).max() * cost < 1e-4


def test_real_embeddings_agree_with_scikit_learn(shared_data) -> None:
    file = shared_data / "embeddings" / "kather2016_texture" / "best3_49.npz"
    with np.load(file) as arrays:
        train, label = arrays["X"][::4].astype(np.float64), arrays["y"][::4]
    train = (train - train.mean(0)) / train.std(0)
    theirs = LogisticRegression(C=0.1, solver="newton-cholesky", tol=1e-10).fit(train, label)
    expected = theirs.predict_proba(train)
    for dtype, tolerance in ((torch.float64, 1e-7), (torch.float32, 1e-4)):
        head = logistic_probe(train, label, cost=0.1, dtype=dtype)
        assert head.has_converged
        np.testing.assert_allclose(head.predict(train).score_NC, expected, atol=tolerance)


def test_labels_of_any_type_and_order(three_classes) -> None:
    train, label, test = three_classes
    names = np.array(["tumour", "adipose", "mucus"])[label]
    by_code, by_name = (logistic_probe(train, given).predict(test) for given in (label, names))
    assert by_name.class_C.tolist() == ["adipose", "mucus", "tumour"]
    np.testing.assert_allclose(by_name.score_NC, by_code.score_NC[:, [1, 2, 0]], atol=1e-4)
    assert set(by_name.label_N) <= set(names)


def test_rows_in_another_order_give_the_same(three_classes, generator) -> None:
    train, label, test = three_classes
    order = generator.permutation(len(label))
    here = logistic_probe(train, label, dtype=torch.float64).predict(test).score_NC
    there = logistic_probe(train[order], label[order], dtype=torch.float64).predict(test).score_NC
    np.testing.assert_allclose(here, there, atol=1e-7)


def test_scale_and_offset_of_a_feature_do_not_matter(three_classes) -> None:
    train, label, test = three_classes
    scale, offset = np.array([3.0, 0.01, 50, 1]), np.array([5.0, -3, 0, 2])
    plain = logistic_probe(train, label).predict(test).score_NC
    moved = logistic_probe(train * scale + offset, label).predict(test * scale + offset).score_NC
    np.testing.assert_allclose(plain, moved, atol=1e-3)


def test_balancing_lifts_the_rare_class(three_classes) -> None:
    train, label, test = three_classes
    plain = logistic_probe(train, label).predict(test).score_NC[:, 2].mean()
    balanced = logistic_probe(train, label, balance_classes=True).predict(test).score_NC
    assert balanced[:, 2].mean() > plain


def test_an_unfinished_solution_is_named(three_classes, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        head = logistic_probe(*three_classes[:2], cost=100, max_iterations=1)
    assert not head.has_converged
    assert not head.predict(three_classes[2]).has_converged
    assert "logistic_probe: not converged after" in caplog.text


@pytest.mark.parametrize("cost", [0, -1, np.nan, np.inf])
def test_refuses_a_cost_that_is_none(three_classes, cost) -> None:
    with pytest.raises(ValueError, match="cost needs to be finite and > 0"):
        logistic_probe(*three_classes[:2], cost=cost)


def test_refuses_other_types_and_what_overflows(three_classes) -> None:
    train, label, test = three_classes
    with pytest.raises(ValueError, match="logistic_probe: dtype needs to be torch.float32 or"):
        logistic_probe(train, label, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="features of at most .* or standardise"):
        logistic_probe(train * 1e20, label, standardise=False)
    large = logistic_probe(train * 1e20, label).predict(test * 1e20)
    np.testing.assert_allclose(
        large.score_NC, logistic_probe(train, label).predict(test).score_NC, atol=1e-4
    )


def test_refuses_what_cannot_be_trained_on(three_classes) -> None:
    train, label, _ = three_classes
    with pytest.raises(ValueError, match="logistic_probe: the train side needs two classes"):
        logistic_probe(train, label * 0)
    with pytest.raises(ValueError, match="one value for each of 70 rows"):
        logistic_probe(train, label[:-1])
    with pytest.raises(ValueError, match="needs a feature that varies"):
        logistic_probe(train * 0 + 3, label)
    train[3, 2] = np.nan
    with pytest.raises(ValueError, match="NaN or an infinity in 1 of 70 rows, the first is row 3"):
        logistic_probe(train, label)


@pytest.mark.gpu
def test_the_device_gives_the_host_s_probabilities(generator) -> None:
    train, code = clusters(generator, 3000, 80, 9, spread=0.3)
    here = logistic_probe(train, code, cost=1.0)
    there = logistic_probe(torch.from_numpy(train).cuda(), code, cost=1.0)
    assert there.weight_CD.is_cuda
    np.testing.assert_allclose(
        there.predict(train).score_NC, here.predict(train).score_NC, atol=2e-4
    )
