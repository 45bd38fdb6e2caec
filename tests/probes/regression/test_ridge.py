import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from anlage.probes.metrics.correlation import PEARSON, R2
from anlage.probes.regression.ridge import ridge_probe, ridge_probe_hest, ridge_probe_tuned
from anlage.probes.splits.grouped import grouped_folds


def made(generator, shape=(120, 40), n_targets=6, noise=1.0):
    """Rows with falling spread and offsets, and targets that a few directions explain."""
    rows = generator.normal(size=shape) * np.logspace(1, -1, shape[1]) + 30
    target = (rows - 30) @ generator.normal(size=(shape[1], n_targets)) * 0.1
    return rows, target + noise * generator.normal(size=target.shape) + 5


def pipeline(n_components, alpha, *, fit_intercept=True):
    reduced = [PCA(n_components, svd_solver="full")] if n_components else []
    ridge = Ridge(alpha=alpha, fit_intercept=fit_intercept, solver="svd")
    return make_pipeline(StandardScaler(), *reduced, ridge)


@pytest.mark.parametrize("shape", [(120, 40), (40, 120)])
@pytest.mark.parametrize("n_components", [None, 10])
@pytest.mark.parametrize("alpha", [1e-3, 30.0])
def test_equals_scikit_learn(generator, shape, n_components, alpha):
    rows, target = made(generator, shape)
    test = made(generator, shape)[0]
    expected = pipeline(n_components, alpha).fit(rows, target).predict(test)
    head = ridge_probe(rows, target, alpha=alpha, n_components=n_components)
    np.testing.assert_allclose(head.predict(test), expected, rtol=1e-8, atol=1e-8)
    assert head.n_components == (n_components or min(40, shape[0] - 1))
    assert ridge_probe(rows, target[:, 0], alpha=alpha).predict(test).shape == (len(test),)


def test_equals_the_closed_form_without_scaling(generator):
    rows, target = made(generator, (60, 8))
    centred = rows - rows.mean(axis=0)
    inverse = np.linalg.inv(centred.T @ centred + 3 * np.eye(8))
    weight = inverse @ centred.T @ (target - target.mean(axis=0))
    head = ridge_probe(rows, target, alpha=3, standardise=False)
    np.testing.assert_allclose(head.weight_TD, weight.T, rtol=1e-9)
    np.testing.assert_allclose(head.bias_T, target.mean(axis=0))


def test_hest_equals_its_pipeline(generator):
    rows, target = made(generator, (400, 300), n_targets=5)
    test = made(generator, (50, 300))[0]
    head = ridge_probe_hest(rows, target)
    alpha = 100 / (256 * 5)
    assert head.alpha_T.tolist() == [alpha] * 5
    expected = pipeline(256, alpha, fit_intercept=False).fit(rows, target).predict(test)
    np.testing.assert_allclose(head.predict(test), expected, rtol=1e-7, atol=1e-7)


def test_hest_is_blind_to_its_missing_intercept_in_pearson_only(generator):
    rows, target = made(generator, (300, 20))
    hest = ridge_probe_hest(rows[:200], target[:200], n_components=10)
    plain = ridge_probe(rows[:200], target[:200], alpha=100 / 60, n_components=10)
    truth = target[200:]
    np.testing.assert_array_equal(hest.weight_TD, plain.weight_TD)
    assert PEARSON(truth, hest.predict(rows[200:])) == pytest.approx(
        PEARSON(truth, plain.predict(rows[200:]))
    )
    assert R2(truth, hest.predict(rows[200:])) < 0 < R2(truth, plain.predict(rows[200:]))


@pytest.mark.parametrize("shape", [(120, 40), (60, 150)])
@pytest.mark.parametrize("n_components", [None, 15])
@pytest.mark.parametrize("one_alpha", [True, False])
def test_tuned_alpha_is_that_of_a_slow_grid_search(generator, shape, n_components, one_alpha):
    rows, target = made(generator, shape, noise=3.0)
    target[:, 3] = 0.1  # a gene that is never seen
    group = np.arange(len(rows)) // 4
    alphas = [0.1, 1.0, 10.0, 100.0, 1000.0]
    scaled = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    folds = grouped_folds(np.zeros(len(rows)), group, n_folds=4, seed=3)
    error = np.zeros((5, 6))
    for place, alpha in enumerate(alphas):
        for fold in folds:
            reduced = [PCA(n_components, svd_solver="full")] if n_components else []
            model = make_pipeline(*reduced, Ridge(alpha=alpha, solver="svd"))
            model.fit(scaled[fold.train], target[fold.train])
            gap = model.predict(scaled[fold.test]) - target[fold.test]
            error[place] += (gap**2).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        error /= ((target - target.mean(axis=0)) ** 2).sum(axis=0)
    error[:, 3] = np.nan
    head = ridge_probe_tuned(
        *(rows, target, group),
        **{"alphas": alphas, "n_folds": 4, "seed": 3, "one_alpha": one_alpha},
        n_components=n_components,
    )
    np.testing.assert_allclose(head.error_AT, error, rtol=1e-7)
    varying = [0, 1, 2, 4, 5]
    if one_alpha:
        assert set(head.alpha_T) == {alphas[np.nanmean(error, axis=1).argmin()]}
    else:
        best = np.array(alphas)[error[:, varying].argmin(axis=0)]
        np.testing.assert_array_equal(head.alpha_T[varying], best)
    np.testing.assert_allclose(head.predict(rows)[:, 3], 0.1)
    assert head.is_at_edge == bool(np.isin(head.alpha_T, [0.1, 1000.0]).any())
    same = ridge_probe(rows, target, alpha=head.alpha_T[0], n_components=n_components)
    np.testing.assert_allclose(same.weight_TD[0], head.weight_TD[0])


def test_tuned_finds_a_strong_penalty_where_there_is_only_noise(generator):
    rows, target = generator.normal(size=(80, 60)), generator.normal(size=80)
    head = ridge_probe_tuned(rows, target, np.arange(80))
    assert head.alpha_T[0] > 100
    assert head.n_components == 60
    assert ridge_probe_tuned(rows, target, np.arange(80)).alpha_T == head.alpha_T


def test_a_feature_of_real_embeddings_from_the_others(shared_data):
    loaded = np.load(shared_data / "embeddings" / "kather2016_texture" / "best3_49.npz")
    rows = loaded["X"]
    order = np.random.default_rng(0).permutation(len(rows))
    train, test = order[:2000], order[2000:3000]
    others, target = rows[:, 5:], rows[:, :5]
    hest = ridge_probe_hest(others[train], target[train], n_components=30)
    tuned = ridge_probe_tuned(others[train], target[train], train % 100, n_components=30)
    expected = pipeline(30, 100 / 150, fit_intercept=False).fit(others[train], target[train])
    np.testing.assert_allclose(
        hest.predict(others[test]), expected.predict(others[test]), rtol=1e-3, atol=1e-3
    )
    pearson = [PEARSON(target[test], head.predict(others[test])) for head in (hest, tuned)]
    assert min(pearson) > 0.5
    assert abs(pearson[0] - pearson[1]) < 0.02


def test_bad_input_is_refused(generator):
    rows, target = made(generator)
    group = np.arange(120) // 3
    with pytest.raises(ValueError, match="1 to 40, the lesser of 120 train rows and 40 features"):
        ridge_probe_hest(rows, target)
    with pytest.raises(ValueError, match="n_components needs to be 1 to 40"):
        ridge_probe(rows, target, alpha=1, n_components=0)
    with pytest.raises(ValueError, match="one row for each of 120 train rows"):
        ridge_probe(rows, target[1:], alpha=1)
    with pytest.raises(ValueError, match="train needs a column that varies"):
        ridge_probe(np.ones((9, 3)), target[:9], alpha=1)
    with pytest.raises(ValueError, match="target needs a column that varies"):
        ridge_probe(rows, np.ones(120), alpha=1)
    with pytest.raises(ValueError, match="target needs finite numbers"):
        ridge_probe(rows, np.full(120, np.nan), alpha=1)
    for alpha in (-1, np.nan, np.inf):
        with pytest.raises(ValueError, match="alpha needs to be finite, >= 0"):
            ridge_probe(rows, target, alpha=alpha)
    for alphas in ([], [0, 1], [2, 1]):
        with pytest.raises(ValueError, match="> 0, and rising"):
            ridge_probe_tuned(rows, target, group, alphas=alphas)
    with pytest.raises(ValueError, match="groups needs one value for each of 120 rows"):
        ridge_probe_tuned(rows, target, group[1:])
    with pytest.raises(ValueError, match="n_folds"):
        ridge_probe_tuned(rows, target, group % 2)
    with pytest.raises(ValueError, match="one width"):
        ridge_probe(rows, target, alpha=1).predict(rows[:, 1:])
    with pytest.raises(ValueError, match="non-empty"):
        ridge_probe(rows, target, alpha=1).predict(rows[:0])


def test_constant_features_change_nothing(generator):
    rows, target = made(generator)
    wider = np.concatenate([rows, np.full((120, 2), 0.1)], axis=1)
    with_constant = ridge_probe(wider, target, alpha=2)
    np.testing.assert_allclose(
        with_constant.predict(wider), ridge_probe(rows, target, alpha=2).predict(rows)
    )
    assert not with_constant.weight_TD[:, -2:].any()


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(120, 40), (60, 150)])
def test_cuda_gives_the_same(generator, shape):
    rows, target = made(generator, shape)
    group = np.arange(len(rows)) // 3
    here = ridge_probe_tuned(rows, target, group, n_components=20)
    there = ridge_probe_tuned(torch.from_numpy(rows).cuda(), target, group, n_components=20)
    assert there.weight_TD.is_cuda
    np.testing.assert_allclose(there.error_AT, here.error_AT, rtol=1e-8)
    np.testing.assert_allclose(there.predict(rows), here.predict(rows), rtol=1e-8)
