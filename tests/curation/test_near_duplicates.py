"""Near-duplicates against all pairs and a flood."""

from __future__ import annotations

import numpy as np
import pytest

from anlage.curation import near_duplicates
from anlage.curation.near_duplicates import is_like_any, is_near_duplicate, nearest_rows
from reference.slow_curation import cosines, duplicates


def with_copies(seed: int, n: int = 60) -> np.ndarray:
    """Rows, and noisy copies of some of them, shuffled."""
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((n, 16))
    copies = rows[generator.integers(0, n, n // 2)]
    noise = generator.standard_normal(copies.shape) * generator.choice(
        [0.05, 0.2], (len(copies), 1)
    )
    return generator.permutation(np.concatenate([rows, copies + noise])).astype(np.float16)


@pytest.mark.parametrize("threshold", [0.6, 0.9, 0.98, 1.0])
@pytest.mark.parametrize("block", [7, 16_384])
def test_they_are_those_of_all_pairs(threshold: float, block: int, monkeypatch) -> None:
    monkeypatch.setattr(near_duplicates, "BLOCK_ROWS", block)
    rows = with_copies(int(threshold * 100))
    found = is_near_duplicate(rows, threshold=threshold)
    assert found.tolist() == duplicates(rows, threshold)
    if threshold < 1:
        assert 10 < found.sum() < 60


@pytest.mark.parametrize("seed", range(5))
def test_copies_are_found_at_a_cosine_of_one(seed: int) -> None:
    """Rounding makes the cosine of a row with its copy, scaled or not, a little less than one."""
    rows = np.random.default_rng(seed).standard_normal((200, 5 + seed)).astype(np.float32)
    found = is_near_duplicate(np.concatenate([rows, rows * np.float32(1.7)]), threshold=1.0)
    assert found.tolist() == [False] * 200 + [True] * 200
    assert is_like_any(rows, rows * np.float32(0.3), threshold=1.0).all()


def test_a_chain_is_one_component_and_its_first_row_stays() -> None:
    angle = np.radians(10) * np.arange(9)  # neighbours 10 degrees apart, the ends 80
    rows = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    found = is_near_duplicate(rows, threshold=float(np.cos(np.radians(11))))
    assert found.tolist() == [False] + [True] * 8
    assert not is_near_duplicate(rows, threshold=float(np.cos(np.radians(9)))).any()


def test_more_copies_than_neighbours_are_still_joined() -> None:
    rows = np.random.default_rng(0).standard_normal((2, 8))
    copies = np.repeat(rows, 50, axis=0) + np.random.default_rng(1).normal(0, 1e-3, (100, 8))
    found = is_near_duplicate(copies, threshold=0.99, n_neighbours=8)
    assert np.flatnonzero(~found).tolist() == [0, 50]


def test_only_rows_of_the_same_part_are_compared() -> None:
    rows = with_copies(6)
    part = np.random.default_rng(0).integers(0, 5, len(rows)) * 3
    found = is_near_duplicate(rows, threshold=0.9, part_N=part)
    for label in np.unique(part):
        assert found[part == label].tolist() == duplicates(rows[part == label], 0.9)
    assert 0 < found.sum() < is_near_duplicate(rows, threshold=0.9).sum()


def test_what_is_kept_is_nowhere_joined_and_scale_does_not_matter() -> None:
    rows = with_copies(3).astype(np.float64)
    kept = ~is_near_duplicate(rows, threshold=0.9)
    apart = cosines(rows[kept], rows[kept])
    np.fill_diagonal(apart, 0)
    assert apart.max() < 0.9
    scaled = rows * np.random.default_rng(0).uniform(0.1, 10, (len(rows), 1))
    assert (is_near_duplicate(scaled, threshold=0.9) == ~kept).all()


def test_few_rows_have_few_duplicates() -> None:
    assert is_near_duplicate(np.zeros((0, 4)), threshold=0.9).shape == (0,)
    assert is_near_duplicate(np.ones((1, 4)), threshold=0.9).tolist() == [False]
    assert is_near_duplicate(np.ones((2, 4)), threshold=0.9).tolist() == [False, True]


def test_rows_like_a_held_out_set_are_those_of_all_pairs() -> None:
    rows, held_out = with_copies(4), with_copies(5)[:20]
    held_out[:5] = rows[10:15]
    found = is_like_any(rows, held_out, threshold=0.8)
    assert found.tolist() == (cosines(rows, held_out).max(axis=1) >= 0.8).tolist()
    assert found[10:15].all()
    assert found.sum() < 40


@pytest.mark.parametrize("threshold", [0.0, -0.5, 1.01, float("nan")])
def test_no_cosine_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="needs a cosine above 0, at most 1"):
        is_near_duplicate(np.ones((3, 2)), threshold=threshold)
    with pytest.raises(ValueError, match="needs a cosine above 0, at most 1"):
        is_like_any(np.ones((3, 2)), np.ones((1, 2)), threshold=threshold)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="n_neighbours >= 1; got 0"):
        is_near_duplicate(np.ones((3, 2)), threshold=0.9, n_neighbours=0)
    with pytest.raises(ValueError, match="got widths 2 and 3, k=1"):
        nearest_rows(np.ones((3, 2)), np.ones((3, 3)), k=1, title="x")
    with pytest.raises(ValueError, match=r"k from 1 to 3; .* k=4"):
        nearest_rows(np.ones((3, 2)), np.ones((3, 2)), k=4, title="x")
