import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from anlage.probes.linear.path import TITAN_COSTS, logistic_best, logistic_path
from anlage.probes.splits.split import Split


@pytest.fixture
def embeddings(generator):
    code = generator.integers(3, size=240)
    patient = np.arange(240) // 8
    centre = generator.normal(size=(3, 15)) * 0.5
    shift = generator.normal(size=(30, 15))[patient] * 0.7
    return centre[code] + shift + generator.normal(size=(240, 15)), code, patient


def test_each_head_is_scikit_learns_of_that_cost(embeddings) -> None:
    train, code, _ = embeddings
    x = (train - train.mean(0)) / train.std(0)
    path = logistic_path(train, code, costs=TITAN_COSTS[::4], dtype=torch.float64)
    for cost in path.cost_K:
        theirs = LogisticRegression(C=cost, solver="newton-cholesky", tol=1e-10, max_iter=1000)
        expected = theirs.fit(x, code).predict_proba(x)
        head = path.head(cost)
        assert head.has_converged
        np.testing.assert_allclose(head.predict(train).score_NC, expected, atol=1e-6)


def test_norms_rise_with_the_cost(embeddings) -> None:
    path = logistic_path(*embeddings[:2])
    assert len(path.heads) == 45
    assert path.cost_K[0] == pytest.approx(1e-5)
    assert path.cost_K[-1] == 1e6
    assert (np.diff(path.norm_K) > -1e-4 * path.norm_K[1:]).all()


def test_order_of_costs_does_not_matter(embeddings) -> None:
    rising, falling = (
        logistic_path(*embeddings[:2], costs=costs) for costs in ([0.1, 1, 10], [10, 1, 0.1])
    )
    np.testing.assert_array_equal(rising.cost_K, falling.cost_K)
    np.testing.assert_array_equal(rising.norm_K, falling.norm_K)


def test_cost_is_the_best_of_inner_folds_of_whole_patients(embeddings, monkeypatch) -> None:
    train, code, patient = embeddings
    seen = []

    def spy(train_MD, label_M, **settings):
        seen.append((train_MD.shape[0], np.asarray(label_M)))
        return logistic_path(train_MD, label_M, **settings)

    monkeypatch.setattr("anlage.probes.linear.path.logistic_path", spy)
    costs = [1e-3, 1e-2, 0.1, 1, 10]
    choice = logistic_best(train, code, patient, costs=costs, dtype=torch.float64)
    assert choice.loss_FK.shape == (3, 5)
    assert choice.cost == costs[choice.loss_FK.mean(0).argmin()]
    assert seen[-1][0] == 240  # the last is of all rows
    assert sum(n for n, _ in seen[:-1]) == 2 * 240
    assert all(n % 8 == 0 for n, _ in seen)  # patients stay whole
    direct = logistic_path(train, code, costs=[choice.cost], dtype=torch.float64).heads[0]
    np.testing.assert_allclose(
        choice.head.predict(train).score_NC, direct.predict(train).score_NC, atol=1e-6
    )


def test_inner_losses_are_of_patients_held_out(generator) -> None:
    """Rows of a patient are alike: held out together they are harder."""
    patient = np.arange(240) // 8
    train = generator.normal(size=(30, 15))[patient] + 0.3 * generator.normal(size=(240, 15))
    code, costs = patient % 3, [0.01, 1, 100]
    by_patient = logistic_best(train, code, patient, costs=costs)
    by_row = logistic_best(train, code, np.arange(240), costs=costs)
    assert by_patient.loss_FK.mean(0).min() > 2 * by_row.loss_FK.mean(0).min()
    assert by_patient.cost < by_row.cost
    accuracy = logistic_best(train, code, patient, costs=costs, criterion="balanced_accuracy")
    assert 0 <= accuracy.loss_FK.min() <= accuracy.loss_FK.max() <= 1


def test_refusals(embeddings) -> None:
    train, code, patient = embeddings
    with pytest.raises(ValueError, match="costs needs one number or more"):
        logistic_path(train, code, costs=[])
    with pytest.raises(ValueError, match="cost needs to be finite and > 0; got -1"):
        logistic_path(train, code, costs=[1, -1])
    with pytest.raises(ValueError, match="needs one of its 2 costs; got 3. The nearest is 1"):
        logistic_path(train, code, costs=[1, 100]).head(3)
    with pytest.raises(ValueError, match="criterion needs to be one of .*; got 'accuracy'"):
        logistic_best(train, code, patient, criterion="accuracy")
    with pytest.raises(ValueError, match="dtype needs"):
        logistic_best(train, code, patient, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="dtype needs"):
        logistic_path(train, code, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="features of at most"):
        logistic_path(train * 1e20, code, standardise=False)
    with pytest.raises(ValueError, match="each class needs 2 groups"):
        logistic_best(train, code, np.where(code == 1, 0, patient + 1))


def test_inner_folds_that_lose_a_class_are_refused_before_any_work(embeddings, monkeypatch) -> None:
    """Their heads would have other columns than the truth counts."""
    train, code, patient = embeddings
    rows = np.arange(240)
    folds = [
        Split(name=str(one), train=rows[code != one], test=rows[code == one]) for one in (1, 2)
    ]
    monkeypatch.setattr("anlage.probes.linear.path.grouped_folds", lambda *_, **__: folds)
    with pytest.raises(ValueError, match=r"needs all classes on its train side; got none of \[1\]"):
        logistic_best(train, code, patient, costs=[1.0])


@pytest.mark.gpu
def test_the_device_gives_the_host_s_path(embeddings) -> None:
    train, code, _ = embeddings
    here = logistic_path(train, code, costs=[0.1, 1, 10])
    there = logistic_path(train, code, costs=[0.1, 1, 10], device="cuda")
    np.testing.assert_allclose(there.norm_K, here.norm_K, rtol=1e-3)
