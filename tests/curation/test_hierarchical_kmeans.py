"""The tree holds every row, its leaves are the clusters there are, resampling spreads them."""

from __future__ import annotations

import numpy as np
import pytest

from anlage.curation import hierarchical_kmeans as module
from anlage.curation.hierarchical_kmeans import (
    _nearest_of_each,
    hierarchical_kmeans,
    nearest_centroid,
)


def blobs(
    sizes: list[int], *, seed: int = 0, spread: float = 0.01
) -> tuple[np.ndarray, np.ndarray]:
    """Rows around corners of a cube, far apart, and of which corner each is."""
    generator = np.random.default_rng(seed)
    corners = np.eye(len(sizes), 12)
    label = generator.permutation(np.repeat(np.arange(len(sizes)), sizes))
    rows = corners[label] + generator.normal(0, spread, (len(label), 12))
    return rows.astype(np.float16), label


def test_leaves_are_the_blobs_however_uneven() -> None:
    rows, label = blobs([300, 40, 8, 5, 3])
    tree = hierarchical_kmeans(rows, n_clusters=[5], seed=1)
    pairs = set(zip(label.tolist(), tree.cluster_of[0].tolist(), strict=True))
    assert len(pairs) == 5
    assert tree.n_clusters == [5]


def test_levels_are_nested_and_full() -> None:
    rows = np.random.default_rng(0).standard_normal((400, 12)).astype(np.float16)
    tree = hierarchical_kmeans(rows, n_clusters=[40, 8, 2], n_resamplings=2, seed=3)
    paths = tree.paths()
    assert paths.shape == (400, 3)
    for level, n in enumerate(reversed(tree.n_clusters)):
        assert sorted(set(paths[:, level])) == list(range(n))
    parents: dict[int, tuple[int, int]] = {}
    for top, middle, leaf in paths.tolist():
        assert parents.setdefault(leaf, (top, middle)) == (top, middle)
    assert [len(c) for c in tree.centroids] == tree.n_clusters


def test_the_same_seed_gives_the_same_tree_and_scale_does_not_matter() -> None:
    rows = np.random.default_rng(1).standard_normal((200, 8)).astype(np.float32)
    settings = {"n_clusters": [12, 3], "n_resamplings": 3}
    one, again, other = (hierarchical_kmeans(rows, **settings, seed=s) for s in (5, 5, 6))
    np.testing.assert_array_equal(one.paths(), again.paths())
    assert (one.paths() != other.paths()).any()
    doubled = hierarchical_kmeans(rows * 4, **settings, seed=5)
    np.testing.assert_array_equal(one.paths(), doubled.paths())


@pytest.mark.parametrize("block", [13, 65_536])
def test_the_nearest_centroid_is_that_of_all_distances(block: int, monkeypatch) -> None:
    monkeypatch.setattr(module, "BLOCK_ROWS", block)
    generator = np.random.default_rng(2)
    rows = generator.standard_normal((90, 6)).astype(np.float16)
    centres = generator.standard_normal((7, 6)).astype(np.float32)
    unit = rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    squared = ((unit[:, None] - centres[None]) ** 2).sum(axis=2)
    label, distance = nearest_centroid(rows, centres)
    assert label.tolist() == squared.argmin(axis=1).tolist()
    np.testing.assert_allclose(distance, squared.min(axis=1), rtol=1e-4)


def test_the_same_number_nearest_is_taken_of_each() -> None:
    generator = np.random.default_rng(3)
    label, distance = generator.integers(0, 5, 60), generator.random(60).astype(np.float32)
    slow = [row for row in range(60) if (distance[label == label[row]] < distance[row]).sum() < 4]
    assert _nearest_of_each(label, distance, n=4).tolist() == slow


def test_resampling_spreads_leaves_over_what_is_rare() -> None:
    """19 of 20 rows crowd in one place; plain k-means puts its centroids there."""
    generator = np.random.default_rng(4)
    angle = np.concatenate([generator.normal(0, 0.15, 3800), generator.uniform(0.6, 3.0, 200)])
    rows = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)

    def in_the_rare_part(n_resamplings: int) -> int:
        tree = hierarchical_kmeans(rows, n_clusters=[60], n_resamplings=n_resamplings, seed=0)
        centre = tree.centroids[0]
        return int((np.arctan2(centre[:, 1], centre[:, 0]) > 0.6).sum())

    plain, resampled = in_the_rare_part(0), in_the_rare_part(10)
    assert resampled >= plain + 5


def test_large_pools_train_on_a_part_of_the_rows(monkeypatch) -> None:
    monkeypatch.setattr(module, "ROWS_A_CENTROID", 20)
    rows, label = blobs([900, 500, 400])
    tree = hierarchical_kmeans(rows, n_clusters=[3], n_resamplings=1, seed=0)
    assert len(set(zip(label.tolist(), tree.cluster_of[0].tolist(), strict=True))) == 3


def test_equal_rows_and_zeros_make_fewer_clusters_not_empty_ones() -> None:
    rows = np.repeat(np.eye(3, 6), 10, axis=0)
    rows[0] = 0
    tree = hierarchical_kmeans(rows, n_clusters=[8, 2], n_resamplings=2, seed=0)
    assert tree.n_clusters[0] <= 8
    assert np.bincount(tree.cluster_of[0]).min() >= 1


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"n_clusters": [21]}, "as many tiles as clusters; got 20 for 21. Ask for 2 clusters"),
        ({"n_clusters": []}, "falling numbers of clusters, such as 200, 20; got none"),
        ({"n_clusters": [4, 4]}, "falling numbers of clusters, .* got 4, 4"),
        ({"n_clusters": [4, 0]}, "falling numbers of clusters, .* got 4, 0"),
        ({"n_clusters": [4], "n_resamplings": -1}, "n_resamplings >= 0; got -1"),
    ],
)
def test_wrong_arguments_are_refused(settings, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        hierarchical_kmeans(np.ones((20, 3)), **settings)
