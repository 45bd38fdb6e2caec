"""Prototypes against the papers' words one row at a time, and scikit-learn's nearest centroid."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestCentroid

from anlage.probes.few_shot.prototypes import prototype_probe, prototypes, unit_rows
from reference.slow_simpleshot import slow_class_vectors, slow_nearest


def clusters(n_rows, *, n_classes=4, width=12, seed=0, spread=1.5):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, n_classes, n_rows)
    centre = np.random.default_rng(99).normal(size=(n_classes, width))
    return 5 + centre[label] + spread * rng.normal(size=(n_rows, width)), label


TRAIN, LABEL = clusters(120)
TEST, TRUTH = clusters(80, seed=1)


def test_vectors_and_labels_are_those_of_the_paper():
    mean, vectors = slow_class_vectors([TRAIN[c == LABEL] for c in range(4)])
    got = prototypes(TRAIN, LABEL)
    np.testing.assert_allclose(got.mean_D, mean, rtol=1e-6)
    np.testing.assert_allclose(got.vector_CD, vectors, atol=1e-6)
    assert (got.vector_CD.norm(dim=1) < 0.9).all()  # not normalised again
    predicted = got.predict(TEST)
    assert (predicted.label_N == slow_nearest(TEST, mean, vectors)).all()
    unit = np.stack([(row - mean) / np.linalg.norm(row - mean) for row in TEST])
    square = ((unit[:, None] - vectors) ** 2).sum(axis=2)
    expected = np.exp(-square) / np.exp(-square).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(predicted.score_NC, expected, atol=1e-6)


def test_nearest_centroid_of_centred_unit_rows_agrees():
    mean = TRAIN.mean(axis=0)
    train, test = (unit_rows(torch.from_numpy(rows - mean)).numpy() for rows in (TRAIN, TEST))
    expected = NearestCentroid().fit(train, LABEL).predict(test)
    got = prototype_probe(TRAIN, LABEL, TEST)
    assert (got.label_N == expected).all()
    assert 0.5 < (got.label_N == TRUTH).mean() < 1


def test_blocks_change_nothing_but_rounding(monkeypatch):
    whole = prototype_probe(TRAIN, LABEL, TEST)
    monkeypatch.setattr("anlage.probes.few_shot.prototypes.BLOCK_ROWS", 7)
    blocks = prototype_probe(TRAIN, LABEL, TEST)
    assert (whole.label_N == blocks.label_N).all()
    np.testing.assert_allclose(whole.score_NC, blocks.score_NC, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_scale_does_not_matter(scale):
    expected = prototype_probe(TRAIN, LABEL, TEST).label_N
    assert (prototype_probe(TRAIN * scale, LABEL, TEST * scale).label_N == expected).all()


def test_names_and_tensors():
    names = np.array(["d", "a", "c", "b"])
    got = prototype_probe(torch.from_numpy(TRAIN), names[LABEL], torch.from_numpy(TEST).half())
    assert (got.class_C == ["a", "b", "c", "d"]).all()
    assert (got.label_N == names[prototype_probe(TRAIN, LABEL, TEST).label_N]).mean() > 0.95
    np.testing.assert_allclose(got.score_NC.sum(axis=1), 1)


def test_the_mean_itself_is_at_no_distance_from_zero():
    mean = prototypes(TRAIN, LABEL).mean_D
    row = unit_rows(torch.zeros(1, 3))
    assert (row == 0).all()
    distance = prototypes(TRAIN, LABEL).squared_distances(mean[None])
    np.testing.assert_allclose(
        distance[0], prototypes(TRAIN, LABEL).vector_CD.square().sum(dim=1), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("train", "label", "test", "message"),
    [
        (TRAIN, LABEL * 0, TEST, "two classes or more"),
        (TRAIN, LABEL[1:], TEST, "one value for each of 120 rows"),
        (np.where(TRAIN > 8, np.nan, TRAIN), LABEL, TEST, "needs finite numbers"),
        (TRAIN, LABEL, TEST[:0], "test needs a non-empty"),
        (TRAIN, LABEL, TEST[:, 1:], "one width"),
        (np.ones_like(TRAIN), LABEL, TEST, "a feature that varies"),
    ],
)
def test_refusals(train, label, test, message):
    with pytest.raises(ValueError, match=message):
        prototype_probe(train, label, test)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees():
    cpu = prototype_probe(TRAIN, LABEL, TEST)
    cuda = prototype_probe(torch.from_numpy(TRAIN).cuda(), LABEL, TEST)
    assert (cpu.label_N == cuda.label_N).all()
    np.testing.assert_allclose(cpu.score_NC, cuda.score_NC, atol=1e-5)
