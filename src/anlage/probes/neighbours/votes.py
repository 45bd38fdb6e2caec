"""Votes of neighbours, and who wins them."""

# Shape suffixes: Q queries, K neighbours, C classes.

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def class_sums(
    code_QK: NDArray[np.int64], weight_QK: NDArray[np.float64], *, n_classes: int
) -> NDArray[np.float64]:
    """(Q, C) float64 weight of the neighbours of each class."""
    n_queries = len(code_QK)
    cell_QK = np.arange(n_queries)[:, None] * n_classes + code_QK
    total = np.bincount(cell_QK.ravel(), weights=weight_QK.ravel(), minlength=n_queries * n_classes)
    return np.asarray(total, dtype=np.float64).reshape(n_queries, n_classes)


def majority(
    code_QK: NDArray[np.int64], similarity_QK: NDArray[np.float32], *, n_classes: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Shares of the votes, one vote a neighbour, and the class that wins.

    A tie goes to the class whose neighbours are more similar in sum, then to the lower code.

    Args:
        code_QK: (Q, K) classes of the neighbours, 0 to C - 1.
        similarity_QK: (Q, K) their similarities.
        n_classes: C.

    Returns:
        share_QC: (Q, C) float64, each row sums to 1.
        winner_Q: (Q,) int64.
    """
    vote_QC = class_sums(code_QK, np.ones(code_QK.shape), n_classes=n_classes)
    sum_QC = class_sums(code_QK, similarity_QK.astype(np.float64), n_classes=n_classes)
    is_tied_QC = vote_QC == vote_QC.max(axis=1, keepdims=True)
    winner_Q = np.where(is_tied_QC, sum_QC, -np.inf).argmax(axis=1)
    return vote_QC / code_QK.shape[1], winner_Q


def weighted(
    code_QK: NDArray[np.int64],
    similarity_QK: NDArray[np.float32],
    *,
    n_classes: int,
    temperature: float,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Shares of votes weighted by exp(similarity / temperature), and the class with the largest.

    Returns:
        share_QC: (Q, C) float64, each row sums to 1.
        winner_Q: (Q,) int64; equal shares go to the lower code.
    """
    score_QK = similarity_QK.astype(np.float64) / temperature
    weight_QK = np.exp(score_QK - score_QK.max(axis=1, keepdims=True))
    share_QC = class_sums(
        code_QK, weight_QK / weight_QK.sum(axis=1, keepdims=True), n_classes=n_classes
    )
    return share_QC, share_QC.argmax(axis=1)
