"""Tiles of a pool that are like those of a query set.

Shape suffixes: Q queries, N tiles of the pool, D embedding width, R tiles found.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from anlage.curation.near_duplicates import nearest_rows

Rows = NDArray[np.floating[Any]]
Integers = NDArray[np.int64]
Floats = NDArray[np.float32]


def retrieve(query_QD: Rows, pool_ND: Rows, *, k: int) -> tuple[Integers, Floats]:
    """The k tiles of the pool nearest to each query, all together, each once.

    Args:
        query_QD: (Q, D) embeddings of the query set, finite, need not be normalised.
        pool_ND: (N, D) embeddings of the pool.
        k: Tiles a query, 1 to N.

    Returns:
        (R,) int64 rows of the pool, ascending; (R,) float32 cosine to the nearest query that found
        them.

    Raises:
        ValueError: If k is out of range or widths differ.

    Source: Oquab et al. 2023, DINOv2, arXiv:2304.07193, appendix A.4, sample-based retrieval (k of
    4 for large query sets).
    """
    index_QK, cosine_QK = nearest_rows(query_QD, pool_ND, k=k, title="queries")
    best_N = np.full(len(pool_ND), -np.inf, dtype=np.float32)
    np.maximum.at(best_N, index_QK.ravel(), cosine_QK.ravel())
    found = np.flatnonzero(best_N > -np.inf)
    return found, best_N[found]


def cap_clusters(cluster_R: Integers, cosine_R: Floats, *, most: int) -> NDArray[np.bool_]:
    """Which of the tiles found are kept if no cluster may give more than ``most``: the most alike.

    Args:
        cluster_R: (R,) the cluster of each.
        cosine_R: (R,) how alike it is; of equal ones the first is kept.
        most: Tiles a cluster, >= 1.

    Returns:
        (R,) bool.

    Raises:
        ValueError: If ``most`` is less than 1.
    """
    if most < 1:
        msg = f"cap_clusters: needs at least 1 tile a cluster; got {most}. Leave the cap out."
        raise ValueError(msg)
    order = np.lexsort((-cosine_R, cluster_R))
    in_order = cluster_R[order]
    nth = np.arange(len(order)) - np.searchsorted(in_order, in_order, side="left")
    is_kept = np.zeros(len(order), dtype=np.bool_)
    is_kept[order[nth < most]] = True
    return is_kept
