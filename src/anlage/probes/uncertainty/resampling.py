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
    """How often each group is drawn in each bootstrap resample, a block of resamples at a time.

    Without strata, resample r draws the groups
    ``default_rng(seed).integers(n_groups, size=(R, n_groups))[r]``. With them, as many groups are
    drawn from each stratum as it has; one stratum is none. The same for every size of block.

    Args:
        n_groups: G.
        n_resamples: R.
        seed: Of the draws.
        stratum_G: (G,) stratum of each group.

    Yields:
        (r, G) float64 counts, each row sums to G; a block holds at most 4 million of them.
    """
    generator = np.random.default_rng(seed)
    order_G = np.arange(n_groups)
    start_G, end_G = np.zeros(n_groups, dtype=np.int64), np.full(n_groups, n_groups)
    if stratum_G is not None:
        order_G = np.argsort(stratum_G, kind="stable")
        _, first_S, code_G, size_S = np.unique(
            stratum_G[order_G], return_index=True, return_inverse=True, return_counts=True
        )
        start_G, end_G = first_S[code_G], (first_S + size_S)[code_G]
    is_one = bool((start_G == 0).all())
    n_block = max(1, BLOCK_WEIGHTS // n_groups)
    for start in range(0, n_resamples, n_block):
        shape = (min(n_block, n_resamples - start), n_groups)
        if is_one:
            place = generator.integers(n_groups, size=shape)
        else:
            place = generator.integers(start_G, end_G, size=shape)
        cell = np.arange(shape[0])[:, None] * n_groups + order_G[place]
        counted = np.bincount(cell.ravel(), minlength=shape[0] * n_groups)
        yield counted.reshape(shape).astype(np.float64)


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
