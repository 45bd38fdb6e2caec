"""Which groups (patients) a resample draws: with replacement, within strata, a block at a time."""

# Shape suffixes: N rows, G groups, C classes, S strata, R weightings of the groups (resamples).

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anlage.probes.checks import labels_of

BLOCK_WEIGHTS = 2**22


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


def leave_one_out_weights(n_groups: int) -> Iterator[NDArray[np.float64]]:
    """Weights of the jackknife: all groups but one, each in its turn.

    Yields:
        (r, G) float64 of ones with one zero a row; a block holds at most 4 million of them.
    """
    n_block = max(1, BLOCK_WEIGHTS // n_groups)
    for start in range(0, n_groups, n_block):
        weight_RG = np.ones((min(n_block, n_groups - start), n_groups))
        row = np.arange(len(weight_RG))
        weight_RG[row, start + row] = 0
        yield weight_RG
