"""Equal shares of clusters, top down: how many tiles each gives, and which.

Shape suffixes: N tiles, C clusters of one parent, T levels.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


def balanced_sample(path_NT: Integers, n: int, *, seed: int = 0) -> Integers:
    """Draw n tiles without replacement, as evenly over the clusters as these allow.

    From the coarsest level down each cluster shares its draws equally among its own: all get the
    same number, those that hold fewer give all they have, and what is left over goes one each to
    clusters drawn by lot. Tiles of a finest cluster are drawn uniformly.

    Args:
        path_NT: (N, T) clusters of each tile, coarsest first; T of 0 is one cluster.
        n: Tiles to draw, 0 to N.
        seed: Seed of the lots.

    Returns:
        (n,) int64 rows, ascending.

    Raises:
        ValueError: If n is more than there are.

    Source: Vo et al. 2024, Automatic data curation for self-supervised learning, arXiv:2405.15613,
    section 3.3, hierarchical sampling.
    """
    if not 0 <= n <= len(path_NT):
        msg = (
            f"balanced_sample: needs n from 0 to the {len(path_NT)} tiles there are; got {n}. "
            "Ask for fewer, or drop fewer duplicates."
        )
        raise ValueError(msg)
    generator = np.random.default_rng(seed)
    every = np.arange(len(path_NT))
    chosen = [*_drawn(path_NT, every, n, level=0, generator=generator)]
    return np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *chosen]))


def equal_shares(size_C: Integers, n: int, *, order_C: Integers) -> Integers:
    """Share n among clusters: the same number each, no more than a cluster holds.

    Args:
        size_C: (C,) how much each holds.
        n: What is shared, 0 to their sum.
        order_C: (C,) a permutation; clusters that come first in it get what does not divide.

    Returns:
        (C,) int64 that sum to n.
    """
    low, high = 0, int(size_C.max(initial=0))
    while low < high:  # the highest level that does not take more than n
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(size_C, middle).sum() <= n else (low, middle - 1)
    share_C = np.minimum(size_C, low)
    has_more = order_C[size_C[order_C] > low]
    share_C[has_more[: n - int(share_C.sum())]] += 1
    return share_C


def balanced_weights(path_NT: Integers) -> Floats:
    """How often each tile is to be drawn for all clusters of a parent to be drawn alike.

    Args:
        path_NT: (N, T) clusters of each tile, coarsest first.

    Returns:
        (N,) float64 above 0 with a mean of 1: the limit of ``balanced_sample`` where every cluster
        could give any number.
    """
    weight_N = np.ones(len(path_NT))
    parent_N = np.zeros(len(path_NT), dtype=np.int64)
    for label_N in path_NT.T:
        pairs, node_N = np.unique(np.stack([parent_N, label_N]), axis=1, return_inverse=True)
        n_children = np.bincount(pairs[0])
        weight_N /= n_children[parent_N]
        parent_N = node_N.ravel()
    weight_N /= np.bincount(parent_N)[parent_N]
    return np.asarray(weight_N * len(path_NT))


def _drawn(
    path_NT: Integers, rows: Integers, n: int, *, level: int, generator: np.random.Generator
) -> Iterator[Integers]:
    if n == 0:
        return
    if level == path_NT.shape[1] or n == len(rows):
        yield generator.permutation(rows)[:n]
        return
    order = np.argsort(path_NT[rows, level], kind="stable")
    _, starts = np.unique(path_NT[rows[order], level], return_index=True)
    children = np.split(rows[order], starts[1:])
    size_C = np.array([len(child) for child in children])
    share_C = equal_shares(size_C, n, order_C=generator.permutation(len(children)))
    for child, share in zip(children, share_C.tolist(), strict=True):
        yield from _drawn(path_NT, child, share, level=level + 1, generator=generator)
