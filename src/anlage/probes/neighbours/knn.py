"""Nearest neighbours by cosine similarity, and the probe that lets them vote."""

# Shape suffixes: Q queries, M rows of the bank, K neighbours, D embedding width, C classes.

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anlage.probes.checks import embedding_tensor, finite_embeddings, same_width, train_side
from anlage.probes.prediction import Prediction

BLOCK_BYTES = 64 * 2**20


def nearest(
    query_QD: ArrayLike, bank_MD: ArrayLike, *, k: int, exclude_own_row: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k rows of a bank most similar to each query, exactly, most similar first.

    Cosine similarity in float32; equal similarities go to the lower row. Similarities are
    computed for a block of queries at a time, so that no more than 64 MiB of them exist (or one
    query's row, if that is larger).

    Args:
        query_QD: (Q, D) embeddings, finite, need not be normalised. A zero row is similar to
            nothing (0).
        bank_MD: (M, D) embeddings.
        k: Neighbours of each query, 1 to M (to M - 1 with ``exclude_own_row``).
        exclude_own_row: The query is the bank itself, and no row is its own neighbour.

    Returns:
        index_QK: (Q, K) int64 rows of the bank.
        similarity_QK: (Q, K) float32 cosine similarities, -1 to 1, falling along each row.

    Raises:
        ValueError: If an array is unusable, widths differ or k is out of range.
    """
    query = finite_embeddings("nearest", "query", query_QD)
    bank = finite_embeddings("nearest", "bank", bank_MD)
    _check_pair(query, bank, k=k, exclude_own_row=exclude_own_row)
    query, bank = _unit_rows(query), _unit_rows(bank)
    index = np.empty((len(query), k), dtype=np.int64)
    similarity = np.empty((len(query), k), dtype=np.float32)
    n_block = max(1, BLOCK_BYTES // (bank.itemsize * len(bank)))
    for start in range(0, len(query), n_block):
        block_QM = query[start : start + n_block] @ bank.T
        if exclude_own_row:
            row = np.arange(len(block_QM))
            block_QM[row, start + row] = -np.inf
        rows = slice(start, start + len(block_QM))
        index[rows] = _largest(block_QM, k)
        similarity[rows] = np.take_along_axis(block_QM, index[rows], axis=1)
    return index, similarity.clip(-1, 1)


def knn_probe(
    train_MD: ArrayLike,
    train_label_M: ArrayLike,
    test_QD: ArrayLike,
    *,
    k: int = 20,
    standardise: bool = False,
) -> Prediction:
    """Class of each test row by majority vote of its k nearest train rows.

    Both sides are centred with the train mean and L2-normalised, so that Euclidean and cosine
    neighbours agree. Votes are not weighted. A tie between classes goes to the class whose
    neighbours are more similar in sum, then to the class that sorts first.

    Args:
        train_MD: (M, D) embeddings of the train side.
        train_label_M: (M,) their labels, strings or integers.
        test_QD: (Q, D) embeddings of the test side.
        k: Neighbours that vote, 1 to M.
        standardise: Divide each feature by its deviation on the train side after centring, for
            features of unlike units (a constant one is only centred).

    Returns:
        Predicted labels and shares of the votes.

    Raises:
        ValueError: If an array is unusable, the train side has one class, or k is larger than it.

    Source: Chen et al. 2024, UNI, arXiv:2308.15474 (centring, L2, k = 20). Theirs gives ties to
    the class that sorts first.
    """
    train_tensor, class_C, code_tensor = train_side("knn_probe", train_MD, train_label_M)
    test_tensor = embedding_tensor("knn_probe", "test", test_QD)
    same_width("knn_probe", train_tensor, test_tensor)
    train, test, code_M = train_tensor.numpy(), test_tensor.numpy(), code_tensor.numpy()
    mean_D = train.mean(axis=0, dtype=np.float64)
    scale_D = train.std(axis=0, dtype=np.float64) if standardise else np.ones_like(mean_D)
    scale_D[scale_D == 0] = 1
    index_QK, similarity_QK = nearest((test - mean_D) / scale_D, (train - mean_D) / scale_D, k=k)

    shape = (len(test), len(class_C))
    cell_QK = np.arange(len(test))[:, None] * len(class_C) + code_M[index_QK]
    n_cells = shape[0] * shape[1]
    vote_QC = np.bincount(cell_QK.ravel(), minlength=n_cells).reshape(shape)
    sum_QC = np.bincount(cell_QK.ravel(), weights=similarity_QK.ravel(), minlength=n_cells).reshape(
        shape
    )
    is_tied_QC = vote_QC == vote_QC.max(axis=1, keepdims=True)
    winner_Q = np.where(is_tied_QC, sum_QC, -np.inf).argmax(axis=1)
    return Prediction(label_N=class_C[winner_Q], score_NC=vote_QC / k, class_C=class_C)


def _check_pair(
    query: NDArray[np.float32], bank: NDArray[np.float32], *, k: int, exclude_own_row: bool
) -> None:
    if query.shape[1] != bank.shape[1]:
        msg = (
            f"nearest: query and bank need embeddings of one width; got {query.shape[1]} and "
            f"{bank.shape[1]}. Embed both with the same encoder and pooling."
        )
        raise ValueError(msg)
    if exclude_own_row and len(query) != len(bank):
        msg = (
            "nearest: exclude_own_row needs the bank itself as the query; got "
            f"{len(query)} queries and {len(bank)} bank rows. Leave exclude_own_row out."
        )
        raise ValueError(msg)
    largest = len(bank) - exclude_own_row
    if not 1 <= k <= largest:
        msg = (
            f"nearest: k needs to be 1 to {largest}, the rows to choose from; got {k}. "
            "Ask for fewer neighbours or give a larger bank (train side)."
        )
        raise ValueError(msg)


def _unit_rows(array: NDArray[np.float32]) -> NDArray[np.float32]:
    tiny = np.finfo(np.float32).tiny
    scaled = array / np.abs(array).max(axis=1, keepdims=True).clip(tiny)  # squares cannot overflow
    length = np.linalg.norm(scaled, axis=1, keepdims=True).clip(tiny)
    return np.asarray(scaled / length, dtype=np.float32)


def _largest(value_QM: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Columns of the k largest values of each row, largest first, equal ones by column."""
    n_columns = value_QM.shape[1]
    chosen = np.argpartition(value_QM, n_columns - k, axis=1)[:, n_columns - k :]
    chosen.sort(axis=1)
    smallest_Q = np.take_along_axis(value_QM, chosen, axis=1).min(axis=1, keepdims=True)
    for row in np.flatnonzero((value_QM >= smallest_Q).sum(axis=1) > k):  # a tie at the k-th place
        chosen[row] = np.sort(np.argsort(-value_QM[row], kind="stable")[:k])
    order = np.argsort(-np.take_along_axis(value_QM, chosen, axis=1), axis=1, kind="stable")
    return np.take_along_axis(chosen, order, axis=1)
