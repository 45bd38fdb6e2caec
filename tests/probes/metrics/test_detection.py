import itertools

import numpy as np
import pytest
import torch
from scipy import ndimage

from anlage.probes.metrics.detection import (
    DETECTION_F1_OVER_IMAGES,
    DETECTION_F1_POOLED,
    centroids,
    detection_counts,
)


def most_pairs(truth, predicted, radius):
    """Every one-to-one pairing."""
    best = 0
    padded = [*range(len(predicted)), *[None] * len(truth)]
    for chosen in set(itertools.permutations(padded, len(truth))):
        near = [
            j is not None and np.linalg.norm(truth[i] - predicted[j]) <= radius
            for i, j in enumerate(chosen)
        ]
        best = max(best, sum(near))
    return best


def test_as_many_pairs_as_there_can_be(generator) -> None:
    truth = [generator.uniform(0, 30, (4, 2)) for _ in range(20)]
    predicted = [generator.uniform(0, 30, (n, 2)) for n in generator.integers(0, 4, 20)]
    counts = detection_counts(truth, predicted, radius_px=10)
    expected = [most_pairs(*pair, 10) for pair in zip(truth, predicted, strict=True)]
    assert counts.n_matched_N.tolist() == expected
    n_matched, n_predicted = sum(expected), sum(map(len, predicted))
    assert DETECTION_F1_POOLED(*counts.columns) == pytest.approx(2 * n_matched / (80 + n_predicted))
    each = [2 * n / (4 + len(p)) for n, p in zip(expected, predicted, strict=True)]
    assert DETECTION_F1_OVER_IMAGES(*counts.columns) == pytest.approx(np.mean(each))


def test_a_far_point_costs_a_pair_under_hovernets_rule_only() -> None:
    """On a line: true at 0 and 12, predicted at 11 and 24. All pairs sum least as 0-11, 12-24."""
    truth, predicted = [np.array([[0, 0], [12, 0]])], [np.array([[11, 1], [24, 0]])]
    ours = detection_counts(truth, predicted, radius_px=5)
    theirs = detection_counts(truth, predicted, radius_px=5, matching="hovernet")
    assert ours.n_matched_N.tolist() == [1]
    assert theirs.n_matched_N.tolist() == [0]


def test_the_radius_itself_is_near_enough() -> None:
    assert detection_counts([[[0, 0]]], [[[3, 4]]], radius_px=5).n_matched_N.tolist() == [1]
    assert detection_counts([[[0, 0]]], [[[3, 4]]], radius_px=4.99).n_matched_N.tolist() == [0]
    assert detection_counts([[]], [[[3, 4]]], radius_px=5).n_predicted_N.tolist() == [1]


def test_centroids_are_scipys(generator) -> None:
    mask, _ = ndimage.label(generator.random((30, 50)) > 0.6)
    found = centroids(torch.from_numpy(mask * 3))
    expected = ndimage.center_of_mass(mask > 0, mask, np.arange(1, mask.max() + 1))
    np.testing.assert_allclose(found, np.array(expected)[:, ::-1])
    assert centroids(np.zeros((4, 4), int)).shape == (0, 2)


def test_real_nuclei_are_detected(shared_data) -> None:
    file = np.load(shared_data / "segmentation" / "consep" / "train" / "masks.npz")
    masks = file["inst"][:6]
    truth = [centroids(mask) for mask in masks]
    moved = [points + np.array([3, 0]) for points in truth]
    assert DETECTION_F1_POOLED(*detection_counts(truth, truth, radius_px=1).columns) == 1
    assert DETECTION_F1_POOLED(*detection_counts(truth, moved, radius_px=12).columns) > 0.98
    lost = [points[::2] for points in truth]
    n_lost, n_true = sum(map(len, lost)), sum(map(len, truth))
    counts = detection_counts(truth, lost, radius_px=12)
    assert DETECTION_F1_POOLED(*counts.columns) == pytest.approx(2 * n_lost / (n_lost + n_true))


@pytest.mark.parametrize(
    ("truth", "predicted", "settings", "match"),
    [
        ([[[0, 0]]], [], {"radius_px": 1}, "got 1 images of truth and 0"),
        ([[[0, 0]]], [[[0, 0]]], {"radius_px": 0}, "radius_px above 0"),
        ([[[0, 0]]], [[[0, 0]]], {"radius_px": 1, "matching": "greedy"}, "got 1 and 'greedy'"),
        ([[[0, 0, 1]]], [[[0, 0]]], {"radius_px": 1}, r"truth of image 0 needs \(I, 2\) points"),
        ([[[0, np.nan]]], [[[0, 0]]], {"radius_px": 1}, "needs finite points"),
    ],
)
def test_detection_refuses(truth, predicted, settings, match) -> None:
    with pytest.raises(ValueError, match=match):
        detection_counts(truth, predicted, **settings)


def test_centroids_refuse_a_boolean_mask() -> None:
    with pytest.raises(ValueError, match="an id for each instance"):
        centroids(np.ones((3, 3), bool))
    with pytest.raises(ValueError, match="mask of integer ids; got float64"):
        centroids(np.ones((3, 3)))
