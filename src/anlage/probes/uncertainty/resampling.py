"""Which groups (patients) a resample draws: with replacement, within strata, a block at a time."""

# Shape suffixes: N rows, G groups, C classes, S strata, R weightings of the groups (resamples).

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anlage.probes.checks import labels_of

BLOCK_WEIGHTS = 2**22
MOST_LEFT_OUT = 2000


def group_codes(
    who: str, group_N: ArrayLike, n_rows: int
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Names of the groups, sorted, and the place of each row's among them.

    Raises:
        ValueError: If there is not one group a row, or fewer than two groups.
    """
    group = labels_of(who, "groups", group_N, n_rows=n_rows)
    group_G, code_N = np.unique(group, return_inverse=True)
    if len(group_G) < 2:
        msg = (
            f"{who}: an interval needs two groups or more; got {len(group_G)} groups in "
            f"{n_rows} rows. Test on rows of more patients."
        )
        raise ValueError(msg)
    return group_G, code_N.astype(np.int64)


def class_counts(
    truth_N: NDArray[Any], code_N: NDArray[np.int64], n_groups: int
) -> NDArray[np.float64]:
    """(G, C) rows of each class in each group."""
    class_C, class_N = np.unique(truth_N, return_inverse=True)
    cell = code_N * len(class_C) + class_N
    counted = np.bincount(cell, minlength=n_groups * len(class_C))
    return counted.reshape(n_groups, len(class_C)).astype(np.float64)


def strata_of_classes(count_GC: NDArray[np.float64]) -> NDArray[np.int64]:
    """The stratum of each group: of the classes it holds, the one that fewest groups hold.

    Where each group holds one class, strata are the classes. Where groups are mixed, every class
    that has a stratum is held by all groups in it, so no resample can lose it; only a class all of
    whose groups also hold rarer ones can still vanish. (The majority class loses rare classes, and
    the set of classes held leaves most groups alone in their stratum: docs/probes/uncertainty.md.)

    Args:
        count_GC: (G, C) rows of each class in each group.

    Returns:
        (G,) int64, codes of classes; among classes held by equally many groups the first.
    """
    holds_GC = count_GC > 0
    n_holders_GC = np.where(holds_GC, holds_GC.sum(axis=0), len(count_GC) + 1)
    rarest_G: NDArray[np.int64] = n_holders_GC.argmin(axis=1).astype(np.int64)
    return rarest_G


def resample_weights(
    n_groups: int, *, n_resamples: int, seed: int, stratum_G: NDArray[np.int64] | None = None
) -> Iterator[NDArray[np.float64]]:
    """Weight of each group in each bootstrap resample, a block of resamples at a time.

    Without strata, resample r draws the groups
    ``default_rng(seed).integers(n_groups, size=(R, n_groups))[r]``, and a weight says how often.
    With them, from a stratum of m groups m - 1 are drawn and each drawing weighs m / (m - 1): plain
    draws of m spread by (m - 1) / m of what they should, which halves the variance of a stratum
    of two. A group alone in its stratum always weighs 1. One stratum is none. The same for every
    size of block.

    Args:
        n_groups: G.
        n_resamples: R.
        seed: Of the draws.
        stratum_G: (G,) stratum of each group.

    Yields:
        (r, G) float64, each row sums to G; a block holds at most 4 million of them.

    Source: Rao and Wu 1988, Resampling inference with complex survey data, JASA 83:231, with
    m - 1 draws from each stratum.
    """
    strata = np.zeros(n_groups, dtype=np.int64) if stratum_G is None else stratum_G
    order_G = np.argsort(strata, kind="stable")
    _, first_S, code_G, size_S = np.unique(
        strata[order_G], return_index=True, return_inverse=True, return_counts=True
    )
    is_drawn_G = np.ones(n_groups, dtype=np.bool_)
    scale_G = np.ones(n_groups)
    if len(size_S) > 1:
        is_drawn_G[first_S[size_S > 1]] = False
        scale_G[order_G] = (size_S / np.maximum(size_S - 1, 1))[code_G]
    low, high = first_S[code_G][is_drawn_G], (first_S + size_S)[code_G][is_drawn_G]
    generator = np.random.default_rng(seed)
    n_block = max(1, BLOCK_WEIGHTS // n_groups)
    for start in range(0, n_resamples, n_block):
        n_rows = min(n_block, n_resamples - start)
        if len(size_S) == 1:
            place = generator.integers(n_groups, size=(n_rows, n_groups))
        else:
            place = generator.integers(low, high, size=(n_rows, len(low)))
        cell = np.arange(n_rows)[:, None] * n_groups + order_G[place]
        counted = np.bincount(cell.ravel(), minlength=n_rows * n_groups)
        yield counted.reshape(n_rows, n_groups) * scale_G


def jackknife_blocks(stratum_G: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which groups the jackknife leaves out together: each alone, or above 2,000 in blocks.

    One by one, the time of G groups grows with G^2. Blocks are drawn within strata, are of equal
    size but for one group, and are the same on every call.

    Args:
        stratum_G: (G,) stratum of each group.

    Returns:
        (G,) int64 code of each group's block, 0 to J - 1; about 2,000 blocks at most.

    Source: Shao and Wu 1989, Annals of Statistics 17:1176 (leaving out several).
    """
    n_groups = len(stratum_G)
    if n_groups <= MOST_LEFT_OUT:
        return np.arange(n_groups)
    drawn_G = np.random.default_rng(0).permutation(n_groups)
    order_G = drawn_G[np.argsort(stratum_G[drawn_G], kind="stable")]
    _, first_S, code_G, size_S = np.unique(
        stratum_G[order_G], return_index=True, return_inverse=True, return_counts=True
    )
    n_blocks_S = np.ceil(size_S * MOST_LEFT_OUT / n_groups).astype(np.int64)
    place_G = (np.arange(n_groups) - first_S[code_G]) % n_blocks_S[code_G]
    block_G = np.empty(n_groups, dtype=np.int64)
    block_G[order_G] = (np.cumsum(n_blocks_S) - n_blocks_S)[code_G] + place_G
    return block_G


def leave_out_weights(block_G: NDArray[np.int64]) -> Iterator[NDArray[np.float64]]:
    """Weights of the jackknife: all groups but those of one block, each block in its turn.

    Args:
        block_G: (G,) block of each group, as ``jackknife_blocks`` gives them.

    Yields:
        (r, G) float64 of ones, and zeros for the block; at most 4 million of them at a time.
    """
    n_left_out = int(block_G.max()) + 1
    n_at_once = max(1, BLOCK_WEIGHTS // len(block_G))
    for start in range(0, n_left_out, n_at_once):
        left_out_R = np.arange(start, min(start + n_at_once, n_left_out))
        yield (block_G != left_out_R[:, None]).astype(np.float64)
