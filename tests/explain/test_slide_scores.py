"""Ranks against a double loop; the order of tiles; what rounding and no weight mean."""

from dataclasses import replace

import numpy as np
import pytest
from scored_tiles import scored

from anlage.explain.slide_scores import is_flat, percentile_rank, top_and_bottom


def slow_rank(weights):
    """Of each weight above 0: the share below it, and half of the ties, itself among them."""
    seen = [w for w in weights if w > 0]
    ranks = []
    for weight in weights:
        below = sum(other < weight for other in seen)
        same = sum(other == weight for other in seen)
        ranks.append((below + (same + 1) / 2) / len(seen) if weight > 0 else np.nan)
    return np.array(ranks)


@pytest.mark.parametrize("n_zeros", [0, 30])
def test_ranks_equal_a_double_loop(generator, n_zeros) -> None:
    weights = generator.integers(1, 40, 80).astype(np.float32) / 100
    weights[generator.choice(80, n_zeros, replace=False)] = 0
    np.testing.assert_allclose(percentile_rank(weights), slow_rank(weights), rtol=1e-12)


def test_weights_that_differ_by_rounding_are_ties() -> None:
    noise = np.float32(0.1) + np.arange(10, dtype=np.float32) * np.float32(1e-8)
    assert is_flat(noise)
    np.testing.assert_allclose(percentile_rank(noise), 0.55)
    assert not is_flat(np.array([0.1, 0.1001]))
    assert is_flat(np.zeros(3))
    assert np.isnan(percentile_rank(np.zeros(3))).all()


def test_top_and_bottom_are_of_tiles_with_weight_and_share_none() -> None:
    weights = np.array([0.0, 0.3, 0.1, 0.3, 0.2, 0.0])
    top, bottom = top_and_bottom(weights, n=2)
    assert top.tolist() == [1, 3]
    assert bottom.tolist() == [2, 4]
    top, bottom = top_and_bottom(weights, n=3)
    assert (top.tolist(), bottom.tolist()) == ([1, 3, 4], [2])
    top, bottom = top_and_bottom(weights, n=9)
    assert (len(top), len(bottom)) == (4, 0)
    top, bottom = top_and_bottom(weights, n=0)
    assert (len(top), len(bottom)) == (0, 0)


@pytest.mark.parametrize("name", ["attention", "x"])
def test_scores_that_share_a_column_are_refused(name) -> None:
    tiles = scored([[0, 0], [64, 0]], [0.25, 0.75])
    other = replace(tiles.scores[0], name=name)
    with pytest.raises(ValueError, match=f"name of its own for each score, .*got '{name}'"):
        replace(tiles, scores=(*tiles.scores, other))
