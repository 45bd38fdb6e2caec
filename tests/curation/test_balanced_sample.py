"""Shares, samples and weights against slow recursions."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anlage.curation.balanced_sample import balanced_sample, balanced_weights, equal_shares
from reference import slow_curation


def a_tree(seed: int, n: int = 120) -> np.ndarray:
    """Paths of uneven clusters, three levels."""
    generator = np.random.default_rng(seed)
    top = generator.choice(4, n, p=[0.7, 0.2, 0.06, 0.04])
    middle = top * 5 + generator.integers(0, 1 + top, n)
    leaf = middle * 7 + generator.choice(3, n, p=[0.8, 0.15, 0.05])
    return np.stack([top, middle, leaf], axis=1)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.data())
@settings(max_examples=60, deadline=None)
def test_shares_are_those_handed_out_one_at_a_time(sizes: list[int], data: st.DataObject) -> None:
    n = data.draw(st.integers(0, sum(sizes)))
    order = data.draw(st.permutations(range(len(sizes))))
    found = equal_shares(np.array(sizes), n, order_C=np.array(order))
    assert found.tolist() == slow_curation.handed_out(sizes, n, order)


@pytest.mark.parametrize("n", [0, 1, 5, 37, 80, 119, 120])
def test_a_sample_is_that_of_the_slow_recursion(n: int) -> None:
    paths = a_tree(n)
    found = balanced_sample(paths, n, seed=n)
    assert found.tolist() == slow_curation.drawn([tuple(p) for p in paths.tolist()], n, n)
    assert len(set(found.tolist())) == n


def test_clusters_give_alike_until_they_are_empty() -> None:
    paths = np.repeat([[0], [1], [2]], [1000, 50, 4], axis=0)
    counts = Counter(paths[balanced_sample(paths, 44), 0].tolist())
    assert counts == {0: 20, 1: 20, 2: 4}


def test_tiles_of_a_leaf_are_drawn_alike() -> None:
    paths = np.zeros((10, 0), dtype=np.int64)
    counts = Counter(
        r for seed in range(400) for r in balanced_sample(paths, 3, seed=seed).tolist()
    )
    assert min(counts.values()) > 80
    assert max(counts.values()) < 160


@pytest.mark.parametrize("n", [-1, 121])
def test_more_than_there_are_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"n from 0 to the 120 tiles there are; got {n}"):
        balanced_sample(a_tree(0), n)


def test_weights_are_those_of_the_slow_recursion() -> None:
    paths = a_tree(9)
    found = balanced_weights(paths)
    np.testing.assert_allclose(found, slow_curation.weights([tuple(p) for p in paths.tolist()]))
    assert found.mean() == pytest.approx(1)
    tops = np.bincount(paths[:, 0], found)
    np.testing.assert_allclose(tops, 120 / 4)


def test_without_clusters_all_weigh_one() -> None:
    assert balanced_weights(np.zeros((7, 0), dtype=np.int64)).tolist() == [1.0] * 7
