"""Tiles that are nearly another tile of the pool, or of a set that is to stay unseen.

Shape suffixes: N tiles of the pool, H tiles held out, D embedding width, K neighbours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from anlage.probes.checks import embedding_tensor
from anlage.probes.neighbours.nearest import search_units
from anlage.probes.neighbours.unit_rows import unit_rows
from anlage.progress import meter

Rows = NDArray[np.floating[Any]]
Flags = NDArray[np.bool_]
BLOCK_ROWS = 16_384  # of queries, whose neighbours are thinned out before the next
ROUNDING = 1e-7  # of unit rows: the cosine of a row with its copy may be 0.99999998


def is_near_duplicate(
    feature_ND: Rows,
    *,
    threshold: float,
    n_neighbours: int = 64,
    part_N: NDArray[np.int64] | None = None,
) -> Flags:
    """Which rows repeat an earlier one.

    Rows are joined where one is among the other's nearest neighbours and their cosine is at least
    the threshold. Of each connected component the first row is kept, so two rows that are kept are
    never joined, while rows at the ends of a chain may be less alike than the threshold.

    Args:
        feature_ND: (N, D) embeddings, finite, need not be normalised.
        threshold: Cosine from which two are the same, above 0, at most 1.
        n_neighbours: Nearest neighbours that are looked at, >= 1.
        part_N: (N,) parts of which only rows of the same are compared, such as clusters: P of them
            cost a P-th of the time and memory, and miss pairs that a border divides. None for one.

    Returns:
        (N,) bool, False on the rows that are kept.

    Raises:
        ValueError: If the threshold or the number of neighbours is out of range.

    Source: Oquab et al. 2023, DINOv2, arXiv:2304.07193, appendix A.3 (k = 64, cosine above 0.6 of a
    copy-detection embedding; any one of a component is kept). Exact neighbours here, by cosine of
    the pool's own embedding, so that the threshold is another.
    """
    _refuse_threshold("is_near_duplicate", threshold)
    if n_neighbours < 1:
        msg = f"is_near_duplicate: needs n_neighbours >= 1; got {n_neighbours}. 64 is DINOv2's."
        raise ValueError(msg)
    one_part = np.zeros(len(feature_ND), dtype=np.int64)
    label_N = one_part if part_N is None else part_N
    order = np.argsort(label_N, kind="stable")
    _, starts = np.unique(label_N[order], return_index=True)
    is_duplicate_N = np.zeros(len(feature_ND), dtype=np.bool_)
    with meter("near-duplicates", total=len(feature_ND), unit="tiles") as progress:
        for rows in np.split(order, starts[1:]):
            if len(rows) > 1:
                chosen = feature_ND if len(rows) == len(feature_ND) else feature_ND[rows]
                pairs = _pairs(chosen, threshold=threshold, n_neighbours=n_neighbours)
                is_duplicate_N[rows] = ~_is_first(pairs, n_rows=len(rows))
            progress.advance(len(rows))
    return is_duplicate_N


def _pairs(
    feature_ND: Rows, *, threshold: float, n_neighbours: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows, and rows among their nearest that are as alike as the threshold."""
    unit_ND = unit_rows(embedding_tensor("is_near_duplicate", "rows", feature_ND, device=None))
    code_N = torch.arange(len(unit_ND))
    k = min(n_neighbours, len(unit_ND) - 1)
    one, other = [], []
    for first in range(0, len(unit_ND), BLOCK_ROWS):
        block = slice(first, first + BLOCK_ROWS)
        found, cosine = search_units(unit_ND[block], unit_ND, k=k, codes=(code_N[block], code_N))
        row, nth = np.nonzero(cosine >= threshold - ROUNDING)
        one.append(row + first)
        other.append(found[row, nth])
    return np.concatenate(one), np.concatenate(other)


def _is_first(pairs: tuple[NDArray[np.int64], NDArray[np.int64]], *, n_rows: int) -> Flags:
    """Which rows are the first of their connected component."""
    joined = coo_array((np.ones(len(pairs[0]), dtype=np.bool_), pairs), shape=(n_rows, n_rows))
    _, component_N = connected_components(joined, directed=False)
    _, first_of_each = np.unique(component_N, return_index=True)
    is_first_N = np.zeros(n_rows, dtype=np.bool_)
    is_first_N[first_of_each] = True
    return is_first_N


def is_like_any(feature_ND: Rows, other_HD: Rows, *, threshold: float) -> Flags:
    """Which rows are as alike to any row of another set as the threshold, or more.

    Args:
        feature_ND: (N, D) embeddings, finite, need not be normalised.
        other_HD: (H, D) embeddings of the other set: the tiles of a test set.
        threshold: Cosine, above 0, at most 1.

    Returns:
        (N,) bool.

    Raises:
        ValueError: If the threshold is out of range or widths differ.

    Source: Oquab et al. 2023, DINOv2, arXiv:2304.07193, appendix A.3, relative deduplication
    (cosine above 0.45 of a copy-detection embedding).
    """
    _refuse_threshold("is_like_any", threshold)
    _, cosine_NK = nearest_rows(feature_ND, other_HD, k=1, title="held-out tiles")
    return np.asarray(cosine_NK[:, 0] >= threshold - ROUNDING)


def nearest_rows(
    query_QD: Rows, bank_MD: Rows, *, k: int, title: str
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Exact nearest rows by cosine, with progress: (Q, K) rows of the bank, (Q, K) cosines.

    Raises:
        ValueError: If widths differ or k is more than the bank holds.
    """
    if query_QD.shape[1] != bank_MD.shape[1] or not 1 <= k <= len(bank_MD):
        msg = (
            f"nearest_rows: needs rows of one width and k from 1 to {len(bank_MD)}; got widths "
            f"{query_QD.shape[1]} and {bank_MD.shape[1]}, k={k}. Embed both with one encoder."
        )
        raise ValueError(msg)
    query, bank = (
        unit_rows(embedding_tensor("nearest_rows", name, rows, device=None))
        for name, rows in (("query", query_QD), ("bank", bank_MD))
    )
    found = []
    with meter(title, total=len(query), unit="tiles") as progress:
        for block in torch.split(query, BLOCK_ROWS):
            found.append(search_units(block, bank, k=k, codes=None))
            progress.advance(len(block))
    return np.concatenate([i for i, _ in found]), np.concatenate([c for _, c in found])


def _refuse_threshold(who: str, threshold: float) -> None:
    if not 0 < threshold <= 1:
        msg = f"{who}: needs a cosine above 0, at most 1; got {threshold}. Try 0.98."
        raise ValueError(msg)
