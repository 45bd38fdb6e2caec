import numpy as np
import pytest
import torch

from anlage.probes import unsupervised
from anlage.probes.unsupervised import (
    alignment,
    feature_std,
    off_diagonal_correlation,
    rankme,
    uniformity,
)

ALL = (rankme, off_diagonal_correlation, feature_std, uniformity)


def rankme_by_svd(embedding):
    s = np.linalg.svd(np.asarray(embedding, dtype=np.float64), compute_uv=False)
    p = s / s.sum() + 1e-7
    return np.exp(-(p * np.log(p)).sum())


def slow_uniformity(embedding, sharpness=2.0):
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    potential = [
        np.exp(-sharpness * ((unit[i] - unit[j]) ** 2).sum())
        for i in range(len(unit))
        for j in range(i)
    ]
    return np.log(np.mean(potential))


def test_rankme_known_values(generator):
    assert rankme(3 * np.eye(7)) == pytest.approx(7, rel=1e-4)
    assert rankme(np.outer(generator.random(30) + 1, generator.random(5))) == pytest.approx(
        1, abs=1e-4
    )
    two = np.diag([3.0, 1.0])
    assert rankme(two) == pytest.approx(np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25))), 1e-5)
    assert rankme(np.zeros((3, 2))) == 0


@pytest.mark.parametrize("shape", [(50, 6), (6, 50), (200, 40), (40, 200)])
@pytest.mark.parametrize("decades", [0, 4, 9])
def test_rankme_equals_a_singular_value_decomposition(generator, monkeypatch, shape, decades):
    monkeypatch.setattr(unsupervised, "BLOCK_ROWS", 32)
    embedding = generator.normal(size=shape) * np.logspace(0, -decades, shape[1])
    assert rankme(embedding) == pytest.approx(rankme_by_svd(embedding), rel=1e-9)
    short = embedding.astype(np.float32)
    assert rankme(torch.from_numpy(short)) == pytest.approx(rankme_by_svd(short), rel=1e-9)


def test_rankme_of_a_collapsed_set_needs_more_than_the_gram_matrix(generator):
    one = np.ones((400, 1)) * generator.normal(size=200)
    assert rankme(one) == pytest.approx(rankme_by_svd(one), rel=1e-9)


def test_rankme_bounds_and_invariance(generator):
    embedding = generator.normal(size=(40, 8))
    rotation = np.linalg.qr(generator.normal(size=(8, 8)))[0]
    assert 1 <= rankme(embedding) <= 8.001
    assert rankme(1000 * embedding @ rotation) == pytest.approx(rankme(embedding))


def test_correlation_of_features(generator, monkeypatch):
    monkeypatch.setattr(unsupervised, "BLOCK_ROWS", 32)
    embedding = generator.normal(size=(90, 7)) @ generator.normal(size=(7, 7)) + 50
    correlation = np.abs(np.corrcoef(embedding.T))
    expected = (correlation.sum() - 7) / 42
    assert off_diagonal_correlation(embedding) == pytest.approx(expected, rel=1e-10)
    constant = np.full((90, 2), [0.1, 3.0])
    wider = np.concatenate([constant, embedding * 1e-3], axis=1)
    assert off_diagonal_correlation(wider) == pytest.approx(expected, rel=1e-9)
    assert off_diagonal_correlation(wider.astype(np.float32)) == pytest.approx(expected, rel=1e-3)
    assert np.isnan(off_diagonal_correlation(wider[:, :3]))
    same = np.outer(generator.normal(size=30), [1.0, -2.0, 3.0])
    assert off_diagonal_correlation(same) == pytest.approx(1)
    assert off_diagonal_correlation(np.eye(4) - 0.25) == pytest.approx(1 / 3)


def test_feature_std_is_that_of_the_sphere(generator, monkeypatch):
    monkeypatch.setattr(unsupervised, "BLOCK_ROWS", 32)
    isotropic = generator.normal(size=(4000, 64)) * 7
    unit = isotropic / np.linalg.norm(isotropic, axis=1, keepdims=True)
    assert feature_std(isotropic) == pytest.approx(unit.std(axis=0).mean(), rel=1e-10)
    assert feature_std(isotropic) == pytest.approx(1 / 8, rel=0.01)
    assert feature_std(np.outer(generator.random(9) + 1, [1.0, 2.0])) == pytest.approx(0, abs=1e-8)
    assert feature_std([[0.0, 0.0], [0.0, 0.0]]) == 0


@pytest.mark.parametrize("block_rows", [1, 7, 4096])
def test_uniformity_equals_a_double_loop(generator, monkeypatch, block_rows):
    monkeypatch.setattr(unsupervised, "BLOCK_ROWS", block_rows)
    embedding = generator.normal(size=(23, 5)) * 3
    assert uniformity(embedding) == pytest.approx(slow_uniformity(embedding), rel=1e-12)
    sharp = uniformity(embedding.astype(np.float32), sharpness=5)
    assert sharp == pytest.approx(slow_uniformity(embedding, 5), rel=1e-5)


def test_uniformity_known_values():
    assert uniformity(np.ones((5, 3))) == pytest.approx(0, abs=1e-12)
    assert uniformity([[1.0, 0.0], [-2.0, 0.0]]) == pytest.approx(-8)
    assert uniformity(np.eye(6)) == pytest.approx(-4)


def test_alignment(generator, monkeypatch):
    monkeypatch.setattr(unsupervised, "BLOCK_ROWS", 8)
    one, other = generator.normal(size=(2, 20, 4))
    unit, twin = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (one, other))
    expected = ((unit - twin) ** 2).sum(axis=1).mean()
    assert alignment(one, other) == pytest.approx(expected)
    assert alignment(one, 3 * one) == pytest.approx(0, abs=1e-12)
    assert alignment(one, -one) == pytest.approx(4)
    with pytest.raises(ValueError, match="two views of the same tiles"):
        alignment(one, other[1:])


def test_real_embeddings_use_some_of_their_directions(shared_data):
    file = shared_data / "embeddings" / "kather2016_texture" / "best3_49.npz"
    embedding = np.load(file)["X"]
    assert rankme(embedding) == pytest.approx(rankme_by_svd(embedding), rel=1e-6)
    correlation = np.abs(np.corrcoef(embedding.T.astype(np.float64)))
    expected = (correlation.sum() - 49) / (49 * 48)
    assert off_diagonal_correlation(embedding) == pytest.approx(expected, rel=1e-6)
    assert uniformity(embedding[:200]) == pytest.approx(slow_uniformity(embedding[:200]), rel=1e-5)


@pytest.mark.parametrize("measure", ALL, ids=lambda measure: measure.__name__)
def test_tensors_of_any_precision_and_bad_input(generator, measure):
    rows = torch.from_numpy(generator.normal(size=(30, 6)))
    assert measure(rows) == measure(rows.numpy())
    assert measure(rows.bfloat16().requires_grad_()) == measure(rows.bfloat16().float())
    with pytest.raises(ValueError, match="NaN"):
        measure([[np.nan, 1.0], [0.0, 1.0]])
    with pytest.raises(ValueError, match="non-empty"):
        measure(np.zeros((0, 3)))


def test_uniformity_refuses_what_has_no_direction():
    with pytest.raises(ValueError, match="zeros in 1 rows, the first is row 1"):
        uniformity([[1.0, 0.0], [0.0, 0.0]])
    with pytest.raises(ValueError, match="two embeddings or more"):
        uniformity([[1.0, 0.0]])
    with pytest.raises(ValueError, match="sharpness > 0"):
        uniformity(np.eye(3), sharpness=0)


@pytest.mark.gpu
@pytest.mark.parametrize("measure", ALL, ids=lambda measure: measure.__name__)
def test_cuda_gives_the_same(generator, measure):
    rows = torch.from_numpy(generator.normal(size=(5000, 48)).astype(np.float32))
    expected = measure(rows)
    assert measure(rows.cuda()) == pytest.approx(expected, rel=1e-9)
    assert measure(rows.numpy(), device="cuda") == pytest.approx(expected, rel=1e-9)
    assert alignment(rows.cuda(), -rows.cuda()) == pytest.approx(4)
