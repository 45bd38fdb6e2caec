"""Blocks of similarities by whichever matrix product is fast on this machine."""

# Shape suffixes: Q queries of a block, S rows of a slab of the bank, D embedding width.

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from anlage.probes.precision import float32_products

CHUNK = 64
N_TRIES = 2
FEWEST_PRODUCTS = 8


class Similarities:
    """Products of query blocks and bank slabs, those of one thread all in the same memory.

    On a CPU the first four products are done by torch's and NumPy's BLAS in turn, and the rest by
    the faster: which one that is depends on the processor, by a factor of up to 1.4. They differ
    in the last bits, so a caller may rely on no more than ``float32_error``.
    """

    def __init__(self, device: torch.device, *, n_values: int, n_products: int) -> None:
        self._device, self._n_values = device, n_values
        self._own = threading.local()
        self._choosing = threading.Lock()
        self._seconds: dict[Callable[..., None], list[float]] = {_by_torch: []}
        if device.type == "cpu" and n_products >= FEWEST_PRODUCTS:
            self._seconds[_by_numpy] = []

    def of(self, query_QD: Tensor, bank_SD: Tensor) -> Tensor:
        """(Q, S) float32 products of all pairs, S filled up to whole chunks with -inf.

        The thread's next call overwrites them.
        """
        if not hasattr(self._own, "memory"):
            self._own.memory = torch.empty(self._n_values, device=self._device)
        shape = len(query_QD), whole_chunks(len(bank_SD))
        out_QS: Tensor = self._own.memory[: shape[0] * shape[1]].view(shape)
        out_QS[:, len(bank_SD) :] = -torch.inf
        with self._choosing:
            seconds = self._seconds[product := self._fastest()]
            turn = len(seconds)
            seconds.append(torch.inf)  # tried, but not yet known
        started = time.perf_counter()
        product(query_QD, bank_SD, out_QS[:, : len(bank_SD)])
        seconds[turn] = (time.perf_counter() - started) / out_QS.numel()
        return out_QS

    def _fastest(self) -> Callable[..., None]:
        untried = [way for way, seconds in self._seconds.items() if len(seconds) < N_TRIES]
        if untried:
            return min(untried, key=lambda way: len(self._seconds[way]))
        return min(self._seconds, key=lambda way: min(self._seconds[way]))


def whole_chunks(n_columns: int) -> int:
    """Columns of as many chunks as hold that many."""
    return -(-n_columns // CHUNK) * CHUNK


def float32_error(width: int) -> float:
    """Largest error of a float32 dot product of two rows of length 1, in any order of summation.

    Source: Higham 2002, Accuracy and stability of numerical algorithms, section 3.1:
    n u / (1 - n u) times the sum of absolute products, here 1 (a little more on the grid).
    """
    relative = (width + 1) * 2.0**-24
    return 1.01 * relative / (1 - relative)


@contextmanager
def plain_float32(device: torch.device, *, n_blas_threads: int) -> Iterator[None]:
    """``float32_products``, each of NumPy's on that many threads."""
    with float32_products(device), threadpool_limits(n_blas_threads, user_api="blas"):
        yield


def _by_torch(query_QD: Tensor, bank_SD: Tensor, out_QS: Tensor) -> None:
    torch.mm(query_QD, bank_SD.T, out=out_QS)


def _by_numpy(query_QD: Tensor, bank_SD: Tensor, out_QS: Tensor) -> None:
    np.matmul(query_QD.numpy(), bank_SD.numpy().T, out=out_QS.numpy())
