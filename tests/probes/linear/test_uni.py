import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from anlage.probes.linear.uni import linear_probe_uni


@pytest.fixture
def embeddings(generator):
    code = generator.integers(4, size=400)
    centre = generator.normal(size=(4, 60)) * 0.4
    train = centre[code] + generator.normal(size=(400, 60)) + 1.5  # not centred, as UNI leaves it
    return train, code


def theirs_of_the_code(train, code, *, cost):
    """The code's objective by torch's L-BFGS, run as UNI describes; returns it and its value."""
    x, y = torch.from_numpy(train), torch.from_numpy(code)
    layer = torch.nn.Linear(x.shape[1], int(y.max()) + 1).double()
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(
        layer.parameters(), max_iter=1000, line_search_fn="strong_wolfe", tolerance_change=1e-10
    )

    def value():
        entropy = torch.nn.functional.cross_entropy(layer(x), y)
        return entropy + layer.weight.norm(p=2) / 2 / cost

    def closure():
        optimizer.zero_grad()
        loss = value()
        loss.backward()
        return loss

    optimizer.step(closure)
    return layer, value().item()


def value_of_the_code(head, train, code, *, cost):
    p = head.predict(train).score_NC[np.arange(len(code)), code]
    return -np.log(p).mean() + float(head.weight_CD.double().norm()) / 2 / cost


def test_paper_is_scikit_learns_with_c_of_cost(embeddings) -> None:
    train, code = embeddings
    cost = 60 * 4 / 100
    theirs = LogisticRegression(C=cost, tol=1e-10, max_iter=10_000, solver="newton-cholesky")
    expected = theirs.fit(train, code).predict_proba(train)
    for dtype, tolerance in ((torch.float64, 1e-7), (torch.float32, 1e-4)):
        head = linear_probe_uni(train, code, reading="paper", dtype=dtype)
        assert head.has_converged
        np.testing.assert_allclose(head.predict(train).score_NC, expected, atol=tolerance)


def test_code_is_the_optimum_of_torchs_lbfgs(embeddings) -> None:
    train, code = embeddings
    layer, least = theirs_of_the_code(train, code, cost=2.4)
    expected = layer(torch.from_numpy(train)).softmax(1).detach().numpy()
    for dtype, tolerance in ((torch.float64, 1e-5), (torch.float32, 1e-4)):
        head = linear_probe_uni(train, code, reading="code", dtype=dtype)
        assert head.has_converged
        ours = value_of_the_code(head, train.astype(np.float32), code, cost=2.4)
        assert ours <= least * (1 + 1e-6)
        np.testing.assert_allclose(head.predict(train).score_NC, expected, atol=tolerance)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_code_meets_the_optimality_conditions(embeddings, n_classes) -> None:
    train, code = embeddings
    code = code % n_classes
    head = linear_probe_uni(train, code, reading="code", dtype=torch.float64)
    excess = (head.predict(train).score_NC - np.eye(n_classes)[code]) / len(code)
    weight = head.weight_CD.numpy()
    strength = 50 / (60 * n_classes)
    pull = strength * weight / np.linalg.norm(weight)
    np.testing.assert_allclose(excess.T @ train + pull, 0, atol=1e-7)
    np.testing.assert_allclose(excess.sum(0), 0, atol=1e-7)


def test_code_gives_zero_weights_where_the_penalty_is_the_stronger(generator) -> None:
    """Noise in few dimensions: lambda = 100 / (D * C) is then large."""
    train, code = generator.normal(size=(3000, 2)), generator.integers(3, size=3000)
    head = linear_probe_uni(train, code, reading="code")
    assert not head.weight_CD.any()
    assert head.has_converged
    share = np.bincount(code) / len(code)
    np.testing.assert_allclose(head.predict(train[:2]).score_NC, [share, share], atol=1e-6)
    layer, _ = theirs_of_the_code(train, code, cost=0.06)
    assert float(layer.weight.detach().norm()) < 1e-3


def test_readings_differ(embeddings) -> None:
    paper, code = (linear_probe_uni(*embeddings, reading=reading) for reading in ("paper", "code"))
    assert np.abs(paper.logits(embeddings[0]) - code.logits(embeddings[0])).max() > 0.1
    assert paper.note == "UNI paper, Cost 2.4"


def test_two_classes_follow_scikit_learn(embeddings) -> None:
    train, code = embeddings
    label = np.where(code > 1, "tumour", "normal")
    theirs = LogisticRegression(C=1.2, tol=1e-10, solver="newton-cholesky").fit(train, label)
    head = linear_probe_uni(train, label, dtype=torch.float64)
    scores = head.predict(train).score_NC
    np.testing.assert_allclose(scores, theirs.predict_proba(train), atol=1e-7)


def test_refuses_another_reading(embeddings) -> None:
    with pytest.raises(ValueError, match="reading needs to be 'paper' or 'code'; got 'mean'"):
        linear_probe_uni(*embeddings, reading="mean")
    with pytest.raises(ValueError, match="two classes or more"):
        linear_probe_uni(embeddings[0], np.ones(400))
    with pytest.raises(ValueError, match="dtype needs to be .*; got torch.float16"):
        linear_probe_uni(*embeddings, dtype=torch.float16)


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float32, 1e20), (torch.float64, 1e160)])
def test_refuses_what_overflows_when_squared(embeddings, dtype, scale) -> None:
    train, code = embeddings
    with pytest.raises(ValueError, match="train needs features of at most .*so that squares can"):
        linear_probe_uni(train * scale, code, dtype=dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("reading", ["paper", "code"])
def test_the_device_gives_the_host_s_probabilities(embeddings, reading) -> None:
    train, code = embeddings
    here = linear_probe_uni(train, code, reading=reading).predict(train).score_NC
    head = linear_probe_uni(train, code, reading=reading, device="cuda")
    np.testing.assert_allclose(head.predict(train).score_NC, here, atol=2e-4)
