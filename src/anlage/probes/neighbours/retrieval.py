"""Retrieval: whether what is found for a query is of its class, or is its own partner."""

# Shape suffixes: Q queries, M rows of the database, K retrieved, D embedding width.

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anlage.probes.checks import Rows, embedding_tensor, labels_of
from anlage.probes.neighbours.nearest import (
    Codes,
    check_search,
    refused_pairs,
    search_units,
)
from anlage.probes.neighbours.unit_rows import mean_row, unit_rows
from anlage.probes.neighbours.votes import majority


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Retrieved:
    """What was retrieved for each query, and where the first right one stands.

    Attributes:
        index_QK: (Q, K) int64 rows of the database, most similar first.
        similarity_QK: (Q, K) float32 cosine similarities.
        rank_Q: (Q,) int64 place of the first right row among the K, 1 for the nearest; 0 for none.
        majority_Q: (Q,) bool, whether the K outvote all others for the query's class; None where
            there are no classes.
    """

    index_QK: NDArray[np.int64]
    similarity_QK: NDArray[np.float32]
    rank_Q: NDArray[np.int64]
    majority_Q: NDArray[np.bool_] | None = None

    def hit_at(self, k: int) -> NDArray[np.bool_]:
        """(Q,) whether a right row is among the k nearest, for resampling.

        Raises:
            ValueError: If k is more than what was retrieved.
        """
        n_retrieved = self.index_QK.shape[1]
        if not 1 <= k <= n_retrieved:
            msg = f"Retrieved: k needs to be 1 to {n_retrieved}; got {k}. Retrieve more rows."
            raise ValueError(msg)
        return (self.rank_Q > 0) & (self.rank_Q <= k)

    def at(self, k: int) -> float:
        """Share of queries with a right row among the k nearest: Acc@k, or recall@k of pairs.

        Raises:
            ValueError: If k is more than what was retrieved.
        """
        return float(self.hit_at(k).mean())

    def majority_accuracy(self) -> float:
        """MVAcc@K: share of queries whose class the K nearest vote for.

        Raises:
            ValueError: If there are no classes.
        """
        if self.majority_Q is None:
            msg = "Retrieved: a vote needs classes; got pairs. Use retrieval with labels."
            raise ValueError(msg)
        return float(self.majority_Q.mean())


def retrieval(
    database_MD: Rows,
    database_label_M: Rows,
    query_QD: Rows,
    query_label_Q: Rows,
    *,
    k: int = 5,
    centre: bool = True,
    database_group_M: Rows | None = None,
    query_group_Q: Rows | None = None,
    device: torch.device | str | None = None,
) -> Retrieved:
    """Rows of the database for each query, right where they are of the query's class.

    ``.at(1)``, ``.at(3)`` and ``.at(5)`` are Acc@1, 3 and 5: one of the nearest has the query's
    class. ``.majority_accuracy()`` is MVAcc@5: the vote of the 5 is for it; a tie goes to the class
    whose rows are more similar in sum, then to the class that sorts first.

    Args:
        database_MD: (M, D) embeddings of the database (train side).
        database_label_M: (M,) their classes.
        query_QD: (Q, D) embeddings of the queries (test side).
        query_label_Q: (Q,) their classes, each of which is in the database.
        k: Rows retrieved for each query, 1 to M.
        centre: Subtract the mean of the database from both sides before normalising them.
        database_group_M: (M,) groups (patients) of the database.
        query_group_Q: (Q,) groups of the queries; no query finds a row of its own group.
        device: Where to compute; by default where the database is.

    Returns:
        What was retrieved, by query.

    Raises:
        ValueError: If an array is unusable, a query's class is not in the database (outside the
            query's own group), or k is more than the rows that a query may find.

    Source: Chen et al. 2024, UNI, arXiv:2308.15474 (ROI retrieval: centring, L2, Acc@1/3/5,
    MVAcc@5). The rule for ties and the exclusion of groups are ours.
    """
    who = "retrieval"
    bank = embedding_tensor(who, "database", database_MD, device=device)
    query = embedding_tensor(who, "query", query_QD, device=bank.device)
    bank_label = labels_of(who, "database labels", database_label_M, n_rows=len(bank))
    query_label = labels_of(who, "query labels", query_label_Q, n_rows=len(query))
    pairs = refused_pairs(
        who,
        n_rows=(len(query), len(bank)),
        exclude_own_row=False,
        groups=(query_group_Q, database_group_M),
    )
    check_search(who, query, bank, k=k, codes=pairs)
    class_C, code = np.unique(np.concatenate([query_label, bank_label]), return_inverse=True)
    code_Q, code_M = code[: len(query)], code[len(query) :]
    _refuse_lonely(class_C, code_Q, code_M, pairs=pairs)

    index_QK, similarity_QK = _search(query, bank, k=k, centre=centre, pairs=pairs)
    found_QK = code_M[index_QK]
    _, winner_Q = majority(found_QK, similarity_QK, n_classes=len(class_C))
    return Retrieved(
        index_QK=index_QK,
        similarity_QK=similarity_QK,
        rank_Q=_first(found_QK == code_Q[:, None]),
        majority_Q=winner_Q == code_Q,
    )


def pair_retrieval(
    query_QD: Rows,
    database_MD: Rows,
    *,
    pair_Q: Rows | None = None,
    k: int = 10,
    centre: bool = False,
    device: torch.device | str | None = None,
) -> Retrieved:
    """Rows of the database for each query, right where they are its own partner.

    For images and their captions or spots and their expression, embedded into one space:
    ``.at(1)``, ``.at(5)`` and ``.at(10)`` are recall@1, 5 and 10. Swap the arguments for the other
    direction.

    Args:
        query_QD: (Q, D) embeddings of one side.
        database_MD: (M, D) embeddings of the other.
        pair_Q: (Q,) row of the database that belongs to each query; by default its own row, and
            Q = M.
        k: Rows retrieved for each query, 1 to M.
        centre: Subtract from each side its own mean.
        device: Where to compute; by default where the database is.

    Returns:
        What was retrieved, by query.

    Raises:
        ValueError: If an array is unusable, a pair is not in the database or k is out of range.

    Source: Radford et al. 2021, CLIP, arXiv:2103.00020 (cosine, no centring).
    """
    who = "pair_retrieval"
    bank = embedding_tensor(who, "database", database_MD, device=device)
    query = embedding_tensor(who, "query", query_QD, device=bank.device)
    check_search(who, query, bank, k=k, codes=None)
    if pair_Q is None and len(query) != len(bank):
        msg = (
            f"{who}: needs a database row for each query; got {len(query)} queries and "
            f"{len(bank)} rows. Give pair_Q, the row that belongs to each query."
        )
        raise ValueError(msg)
    pair = np.arange(len(query)) if pair_Q is None else labels_of(who, "pairs", pair_Q)
    pair = labels_of(who, "pairs", pair, n_rows=len(query))
    if pair.dtype.kind not in "iu" or pair.min() < 0 or pair.max() >= len(bank):
        msg = (
            f"{who}: pairs need rows of the database, 0 to {len(bank) - 1}; got "
            f"{pair.min()} to {pair.max()} ({pair.dtype}). Count rows from 0."
        )
        raise ValueError(msg)
    query_mean = mean_row(query) if centre else None
    bank_mean = mean_row(bank) if centre else None
    index_QK, similarity_QK = search_units(
        unit_rows(query, mean_D=query_mean), unit_rows(bank, mean_D=bank_mean), k=k, codes=None
    )
    return Retrieved(
        index_QK=index_QK, similarity_QK=similarity_QK, rank_Q=_first(index_QK == pair[:, None])
    )


def _search(
    query_QD: Tensor, bank_MD: Tensor, *, k: int, centre: bool, pairs: Codes | None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    mean_D = mean_row(bank_MD) if centre else None
    query, bank = unit_rows(query_QD, mean_D=mean_D), unit_rows(bank_MD, mean_D=mean_D)
    return search_units(query, bank, k=k, codes=pairs)


def _first(is_right_QK: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Place of the first True of each row, from 1; 0 where there is none."""
    return np.where(is_right_QK.any(axis=1), is_right_QK.argmax(axis=1) + 1, 0)


def _refuse_lonely(
    class_C: NDArray[Any],
    code_Q: NDArray[np.int64],
    code_M: NDArray[np.int64],
    *,
    pairs: Codes | None,
) -> None:
    """Refuse queries for which the database holds no row of their class to be found."""
    right_C = np.bincount(code_M, minlength=len(class_C))
    right_Q = right_C[code_Q]
    if pairs is not None:
        group_Q, group_M = (codes.numpy() for codes in pairs)
        n_groups = int(max(group_Q.max(), group_M.max())) + 1
        cell, count = np.unique(code_M * n_groups + group_M, return_counts=True)
        own_cell_Q = code_Q * n_groups + group_Q
        place_Q = np.minimum(np.searchsorted(cell, own_cell_Q), len(cell) - 1)
        right_Q = right_Q - np.where(cell[place_Q] == own_cell_Q, count[place_Q], 0)
    lonely = right_Q == 0
    if lonely.any():
        names = class_C[np.unique(code_Q[lonely])].tolist()
        where = "the database" if pairs is None else "the database outside their own group"
        msg = (
            f"retrieval: queries need a row of their class in {where}; got none for "
            f"{int(lonely.sum())} queries of {names[:10]}. Add such rows, or drop these queries."
        )
        raise ValueError(msg)
