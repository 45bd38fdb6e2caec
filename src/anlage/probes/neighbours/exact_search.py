"""The k rows of a bank with the largest dot product, exactly: float32 finds, float64 decides."""

# Shape suffixes: Q queries (of a block), M rows of the bank, S rows of a slab of it, D embedding
# width, K neighbours, T candidates (K and some to spare).

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anlage.probes.neighbours.similarities import (
    CHUNK,
    Similarities,
    float32_error,
    plain_float32,
    whole_chunks,
)
from anlage.probes.neighbours.worker_threads import in_threads

BLOCK_BYTES = 128 * 2**20  # of similarities, of all workers
WORKER_BYTES = 32 * 2**20  # the same, at least, of each
BLOCK_QUERIES = 512
FEWEST_QUERIES = 128  # of a worker; a block of fewer reads the bank too often
EXACT_BYTES = 64 * 2**20  # of float64 similarities, and of a slab in float64; of all workers
RANK_BYTES = 4 * 2**20  # of gathered candidates, so that they stay in the cache
N_SPARE = 12
MOST_CANDIDATES = 1024
FEWEST_ROWS_A_CANDIDATE = 32  # below, float64 products of the whole bank are cheaper

Found = tuple[Tensor, Tensor]  # float64 (or float32) values and int64 rows, both (Q, ...)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Bank:
    """What is searched in, and which of its rows a query may not find.

    Attributes:
        unit_MD: (M, D) float32 from ``unit_rows``.
        code_M: (M,) int64; a query finds no row of its own code. None if it may find all.
    """

    unit_MD: Tensor
    code_M: Tensor | None = None

    def hide(
        self, value_QS: Tensor, code_Q: Tensor | None, *, start: int, is_hidden: float
    ) -> None:
        """Overwrite the values of rows that a query may not find; the slab begins at ``start``."""
        if self.code_M is not None and code_Q is not None:
            code_S = self.code_M[start : start + value_QS.shape[1]]
            value_QS[:, : len(code_S)].masked_fill_(code_Q[:, None] == code_S, is_hidden)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How the work is divided.

    Attributes:
        n_workers: Threads that take blocks of queries.
        step: Queries of a block.
        slab: Rows of the bank that a block is compared with at a time.
        exact_bytes: Of float64 similarities, and of a slab in float64, of each worker.
    """

    n_workers: int
    step: int
    slab: int
    exact_bytes: int

    @classmethod
    def of(cls, unit_QD: Tensor, *, n_rows: int) -> Plan:
        """Blocks of about one size, as many for each worker, and slabs of one size."""
        n_queries = len(unit_QD)
        n_workers = 1
        if not unit_QD.is_cuda:
            n_workers = max(1, min(torch.get_num_threads(), n_queries // FEWEST_QUERIES))
        n_blocks = n_workers * -(-n_queries // (n_workers * BLOCK_QUERIES))
        step = -(-n_queries // n_blocks)
        n_slabs = -(-4 * step * n_rows // max(BLOCK_BYTES // n_workers, WORKER_BYTES))
        return cls(
            n_workers=n_workers,
            step=step,
            slab=min(n_rows, whole_chunks(-(-n_rows // n_slabs))),
            exact_bytes=EXACT_BYTES // n_workers,
        )


def search(
    unit_QD: Tensor, bank: Bank, *, k: int, code_Q: Tensor | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k largest dot products of each query, largest first, equal ones to the lower row.

    Float32 products find candidates: the k best and 12 to spare. Those that rounding could have
    misplaced are ranked by float64 dot products, which are exact on the grid of ``unit_rows``. A
    query with too many of them (copies in the bank, a collapsed encoder) is searched again in
    float64 over the whole bank. The answer depends on the rows alone. Beside the rows, no more
    than about 300 MiB are held at a time, or 50 MiB for each of torch's threads where that is more.

    Args:
        unit_QD: (Q, D) float32 from ``unit_rows``.
        bank: Rows to search, on the same device; each query may find k or more of them.
        k: Neighbours, 1 to M.
        code_Q: (Q,) int64, compared with the bank's.

    Returns:
        index_QK: (Q, K) int64.
        similarity_QK: (Q, K) float32.
    """
    n_rows, n_candidates = len(bank.unit_MD), k + N_SPARE
    index = np.empty((len(unit_QD), k), dtype=np.int64)
    similarity = np.empty((len(unit_QD), k), dtype=np.float32)
    is_small = n_candidates * FEWEST_ROWS_A_CANDIDATE > n_rows or n_candidates > MOST_CANDIDATES
    plan = Plan.of(unit_QD, n_rows=n_rows)
    starts = range(0, len(unit_QD), plan.step)
    products = Similarities(
        unit_QD.device,
        n_values=plan.step * whole_chunks(plan.slab),
        n_products=len(starts) * -(-n_rows // plan.slab),
    )

    def find(start: int) -> None:
        block = slice(start, start + plan.step)
        part, code = unit_QD[block], None if code_Q is None else code_Q[block]
        if is_small:
            value_QK, row_QK = _search_in_float64(part, bank, plan, k=k, code_Q=code)
        else:
            found = _candidates(part, bank, products, slab=plan.slab, n=n_candidates, code_Q=code)
            value_QK, row_QK = _decide(part, bank, plan, found, k=k, code_Q=code)
        index[block] = row_QK.cpu().numpy()
        similarity[block] = value_QK.float().cpu().numpy()

    n_blas_threads = max(1, torch.get_num_threads() // plan.n_workers)
    with plain_float32(unit_QD.device, n_blas_threads=n_blas_threads):
        in_threads(find, starts, n_workers=plan.n_workers)
    return index, similarity


def _candidates(
    unit_QD: Tensor,
    bank: Bank,
    products: Similarities,
    *,
    slab: int,
    n: int,
    code_Q: Tensor | None,
) -> Found:
    """The n largest float32 products of each query, largest first, and their rows."""
    found: Found | None = None
    for start in range(0, len(bank.unit_MD), slab):
        value_QS = products.of(unit_QD, bank.unit_MD[start : start + slab])
        bank.hide(value_QS, code_Q, start=start, is_hidden=-torch.inf)
        value_QT, row_QT = _largest(value_QS, min(n, value_QS.shape[1]))
        row_QT = (row_QT + start).clamp_(max=len(bank.unit_MD) - 1)  # what fills up is hidden
        if found is not None:
            value_QT, row_QT = torch.cat([found[0], value_QT], 1), torch.cat([found[1], row_QT], 1)
            value_QT, place_QT = value_QT.topk(n, dim=1)
            row_QT = row_QT.gather(1, place_QT)
        found = value_QT, row_QT
    assert found is not None
    return found


def _largest(value_QS: Tensor, n: int) -> Found:
    """The n largest of each row: they lie in the n chunks of columns with the largest maxima."""
    n_chunks = value_QS.shape[1] // CHUNK  # whole ones: ``Similarities`` fills up the last
    if n_chunks < 4 * n or value_QS.is_cuda:
        value_QT, row_QT = value_QS.topk(n, dim=1)
        return value_QT, row_QT
    chunks_QCc = value_QS.view(-1, n_chunks, CHUNK)
    chunk_QT = chunks_QCc.amax(dim=2).topk(n, dim=1, sorted=False).indices
    first_Q1 = torch.arange(0, len(value_QS) * n_chunks, n_chunks)[:, None]
    inside = chunks_QCc.flatten(0, 1).index_select(0, (chunk_QT + first_Q1).flatten())
    value_QT, place_QT = inside.view(len(value_QS), -1).topk(n, dim=1)
    return value_QT, chunk_QT.gather(1, place_QT // CHUNK) * CHUNK + place_QT % CHUNK


def _decide(
    unit_QD: Tensor, bank: Bank, plan: Plan, found: Found, *, k: int, code_Q: Tensor | None
) -> Found:
    """The k best of the candidates in float64; of the whole bank where these may not hold them."""
    value_QT, row_QT = found
    bound_Q1 = value_QT[:, [k - 1]] - 2 * float32_error(unit_QD.shape[1])
    n_needed_Q = (value_QT >= bound_Q1).sum(dim=1)
    value_QK = torch.empty((len(unit_QD), k), dtype=torch.float64, device=unit_QD.device)
    row_QK = torch.empty((len(unit_QD), k), dtype=torch.int64, device=unit_QD.device)
    step = max(1, RANK_BYTES // (8 * unit_QD.shape[1] * (k + 1)))
    for start in range(0, len(unit_QD), step):
        block = slice(start, start + step)
        n = int(n_needed_Q[block].max())
        nearby = value_QT[block, :n], row_QT[block, :n]
        value_QK[block], row_QK[block] = _ranked(unit_QD[block], bank, nearby, k=k)
    short = (n_needed_Q == value_QT.shape[1]).nonzero()[:, 0]
    if len(short):
        code = None if code_Q is None else code_Q[short]
        value_QK[short], row_QK[short] = _search_in_float64(
            unit_QD[short], bank, plan, k=k, code_Q=code
        )
    return value_QK, row_QK


def _ranked(unit_QD: Tensor, bank: Bank, found: Found, *, k: int) -> Found:
    value_QT, row_QT = found
    row_QT, order_QT = row_QT.sort(dim=1)
    is_hidden_QT = value_QT.gather(1, order_QT).isneginf()
    near_QTD = bank.unit_MD.index_select(0, row_QT.flatten()).double().view(*row_QT.shape, -1)
    exact_QT = torch.bmm(near_QTD, unit_QD.double()[:, :, None])[:, :, 0]
    exact_QT.masked_fill_(is_hidden_QT, -torch.inf)
    exact_QT, order_QT = exact_QT.sort(dim=1, descending=True, stable=True)
    return exact_QT[:, :k], row_QT.gather(1, order_QT[:, :k])


def _search_in_float64(
    unit_QD: Tensor, bank: Bank, plan: Plan, *, k: int, code_Q: Tensor | None
) -> Found:
    """Every similarity in float64, a slab of the bank at a time."""
    n_queries, width = unit_QD.shape
    slab = max(1, min(plan.exact_bytes // (8 * width), len(bank.unit_MD)))
    step = max(1, plan.exact_bytes // (8 * (slab + k)))
    blocks = []
    for first in range(0, n_queries, step):
        query = unit_QD[first : first + step].double()
        code = None if code_Q is None else code_Q[first : first + step]
        value = query.new_empty((len(query), 0))
        row = torch.empty((len(query), 0), dtype=torch.int64, device=query.device)
        for start in range(0, len(bank.unit_MD), slab):
            value_QS = query @ bank.unit_MD[start : start + slab].double().T
            bank.hide(value_QS, code, start=start, is_hidden=-torch.inf)
            best, place = _first_largest(value_QS, min(k, value_QS.shape[1]))
            value, row = torch.cat([value, best], 1), torch.cat([row, place + start], 1)
            value, place = value.sort(dim=1, descending=True, stable=True)  # earlier: lower rows
            value, row = value[:, :k], row.gather(1, place[:, :k])
        blocks.append((value, row))
    return torch.cat([value for value, _ in blocks]), torch.cat([row for _, row in blocks])


def _first_largest(value_QS: Tensor, k: int) -> Found:
    """The k largest of each row, largest first, equal ones by column."""
    smallest_Q1 = value_QS.topk(k, dim=1).values[:, -1:]
    is_above_QS = value_QS > smallest_Q1
    is_equal_QS = value_QS == smallest_Q1
    n_open_Q1 = k - is_above_QS.sum(dim=1, keepdim=True)
    is_chosen_QS = is_above_QS | (is_equal_QS & (is_equal_QS.cumsum(dim=1) <= n_open_Q1))
    column_QK = is_chosen_QS.nonzero()[:, 1].view(-1, k)
    value_QK, order_QK = value_QS.gather(1, column_QK).sort(dim=1, descending=True, stable=True)
    return value_QK, column_QK.gather(1, order_QK)
