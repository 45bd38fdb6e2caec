import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from anlage.probes.linear import solver
from anlage.probes.linear.curvature import sample_rows
from anlage.probes.linear.logistic import logistic_probe


def test_a_class_that_the_sample_of_rows_lacks(generator, monkeypatch) -> None:
    """Of more than 32,768 rows the first direction is searched on a sample."""
    monkeypatch.setattr(solver, "REDUCED_ROWS", 100)
    is_sampled = np.zeros(400, dtype=bool)
    is_sampled[sample_rows(400, 100, device=torch.device("cpu")).numpy()] = True
    code = generator.integers(0, 2, 400)
    code[np.flatnonzero(~is_sampled)[:3]] = 2
    train = generator.normal(size=(3, 8))[code] + generator.normal(size=(400, 8))
    theirs = LogisticRegression(C=2.0, solver="newton-cholesky", tol=1e-10).fit(train, code)
    head = logistic_probe(train, code, cost=2.0, standardise=False, dtype=torch.float64)
    assert head.has_converged
    scores = head.predict(train).score_NC
    np.testing.assert_allclose(scores, theirs.predict_proba(train), atol=1e-7)
