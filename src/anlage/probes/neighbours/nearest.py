"""Nearest neighbours by cosine similarity, exact whatever computes them."""

# Shape suffixes: Q queries, M rows of the bank, K neighbours, D embedding width.

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anlage.probes.checks import Rows, embedding_tensor, labels_of
from anlage.probes.neighbours.exact_search import Bank, search
from anlage.probes.neighbours.unit_rows import unit_rows

Codes = tuple[Tensor, Tensor]
"""(Q,) and (M,) int64: a query finds no row of the bank with its own code."""


def nearest(
    query_QD: Rows,
    bank_MD: Rows,
    *,
    k: int,
    exclude_own_row: bool = False,
    query_group_Q: Rows | None = None,
    bank_group_M: Rows | None = None,
    device: torch.device | str | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k rows of a bank most similar to each query, exactly, most similar first.

    Rows are brought to length 1 in float64 and rounded to multiples of 2^-26; their dot products
    are then exact in float64. Float32 products of all pairs find the candidates, float64 decides:
    neighbours do not depend on block size, BLAS or threads, and equal similarities go to the lower
    row. Similarities are within some 2e-8 of those in real numbers, so neighbours closer to each
    other than that may swap. Memory: a float32 copy of both sides and about 300 MiB, or 50 MiB for
    each of torch's threads where that is more.

    Args:
        query_QD: (Q, D) embeddings, finite, need not be normalised. A zero row is similar to
            nothing (0).
        bank_MD: (M, D) embeddings.
        k: Neighbours of each query, 1 to M; fewer where rows are excluded.
        exclude_own_row: The query is the bank itself, and no row is its own neighbour.
        query_group_Q: (Q,) groups (patients); no neighbour is of the query's own.
        bank_group_M: (M,) groups of the bank, given with ``query_group_Q``.
        device: Where to compute; by default where the bank is, and the CPU for an array.

    Returns:
        index_QK: (Q, K) int64 rows of the bank.
        similarity_QK: (Q, K) float32 cosine similarities, -1 to 1, falling along each row.

    Raises:
        ValueError: If an array is unusable, widths differ, groups are given for one side only, or
            k is more than the rows that a query may find.
    """
    bank = embedding_tensor("nearest", "bank", bank_MD, device=device)
    query = embedding_tensor("nearest", "query", query_QD, device=bank.device)
    codes = refused_pairs(
        "nearest",
        n_rows=(len(query), len(bank)),
        exclude_own_row=exclude_own_row,
        groups=(query_group_Q, bank_group_M),
    )
    check_search("nearest", query, bank, k=k, codes=codes)
    return search_units(unit_rows(query), unit_rows(bank), k=k, codes=codes)


def search_units(
    unit_QD: Tensor, unit_MD: Tensor, *, k: int, codes: Codes | None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """``nearest`` of rows from ``unit_rows``, already checked."""
    if codes is None:
        index, similarity = search(unit_QD, Bank(unit_MD=unit_MD), k=k)
    else:
        code_Q, code_M = (code.to(unit_MD.device) for code in codes)
        index, similarity = search(
            unit_QD, Bank(unit_MD=unit_MD, code_M=code_M), k=k, code_Q=code_Q
        )
    return index, similarity.clip(-1, 1)


def refused_pairs(
    who: str,
    *,
    n_rows: tuple[int, int],
    exclude_own_row: bool,
    groups: tuple[Rows | None, Rows | None],
) -> Codes | None:
    """Which rows a query may not find, as codes; None if it may find all.

    Args:
        who: Function that asks, for the message.
        n_rows: Of the query and of the bank.
        exclude_own_row: Row i of the query may not find row i of the bank.
        groups: Of the query and of the bank; both or neither.

    Raises:
        ValueError: If groups are given for one side, do not fit, or come with ``exclude_own_row``;
            or the query cannot be the bank.
    """
    n_query, n_bank = n_rows
    query_group, bank_group = groups
    if exclude_own_row and n_query != n_bank:
        msg = (
            f"{who}: exclude_own_row needs the bank itself as the query; got "
            f"{n_query} queries and {n_bank} bank rows. Leave exclude_own_row out."
        )
        raise ValueError(msg)
    if query_group is None and bank_group is None:
        own = torch.arange(n_query)
        return (own, own) if exclude_own_row else None
    if query_group is None or bank_group is None:
        msg = f"{who}: needs groups of both sides; got one. Give both or neither."
        raise ValueError(msg)
    if exclude_own_row:
        msg = (
            f"{who}: needs groups or exclude_own_row; got both. Leave exclude_own_row out: a row "
            "is of its own group."
        )
        raise ValueError(msg)
    query_label = labels_of(who, "query groups", query_group, n_rows=n_query)
    bank_label = labels_of(who, "bank groups", bank_group, n_rows=n_bank)
    _, code = np.unique(np.concatenate([query_label, bank_label]), return_inverse=True)
    both = torch.from_numpy(code.astype(np.int64))
    return both[:n_query], both[n_query:]


def check_search(
    who: str, query_QD: Tensor, bank_MD: Tensor, *, k: int, codes: Codes | None
) -> None:
    """Refuse a search that cannot be answered.

    Raises:
        ValueError: If widths differ, or a query may find fewer than k rows.
    """
    if query_QD.shape[1] != bank_MD.shape[1]:
        msg = (
            f"{who}: query and bank need embeddings of one width; got {query_QD.shape[1]} and "
            f"{bank_MD.shape[1]}. Embed both with the same encoder and pooling."
        )
        raise ValueError(msg)
    largest = len(bank_MD)
    if codes is not None:
        code_Q, code_M = codes
        n_codes = int(max(code_Q.max(), code_M.max())) + 1
        largest -= int(torch.bincount(code_M, minlength=n_codes)[code_Q].max())
    if not 1 <= k <= largest:
        msg = (
            f"{who}: k needs to be 1 to {largest}, the rows to choose from; got {k}. "
            "Ask for fewer neighbours or give a larger bank (train side)."
        )
        raise ValueError(msg)
