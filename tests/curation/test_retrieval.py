"""Retrieval against all pairs."""

from __future__ import annotations

import numpy as np
import pytest

from anlage.curation.retrieval import cap_clusters, retrieve
from reference.slow_curation import cosines


@pytest.mark.parametrize("k", [1, 3, 50])
def test_what_is_found_is_the_union_of_the_nearest(k: int) -> None:
    generator = np.random.default_rng(k)
    queries, pool = generator.standard_normal((6, 8)), generator.standard_normal((50, 8))
    cosine = cosines(queries, pool)
    nearest = np.argsort(-cosine, axis=1)[:, :k]
    found, alike = retrieve(queries, pool, k=k)
    assert found.tolist() == sorted(set(nearest.ravel().tolist()))
    best = [max(cosine[q, row] for q in range(6) if row in nearest[q]) for row in found]
    np.testing.assert_allclose(alike, best, atol=1e-6)


def test_a_cap_keeps_the_most_alike_of_each_cluster() -> None:
    generator = np.random.default_rng(0)
    cluster, alike = generator.integers(0, 6, 80), generator.random(80).astype(np.float32)
    alike[20:30] = alike[0]
    slow = [
        sum((alike[o], -o) > (alike[row], -row) for o in range(80) if cluster[o] == cluster[row])
        < 5
        for row in range(80)
    ]
    assert cap_clusters(cluster, alike, most=5).tolist() == slow


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="k from 1 to 3"):
        retrieve(np.ones((2, 4)), np.ones((3, 4)), k=4)
    with pytest.raises(ValueError, match="at least 1 tile a cluster; got 0"):
        cap_clusters(np.zeros(3, dtype=np.int64), np.zeros(3, dtype=np.float32), most=0)
