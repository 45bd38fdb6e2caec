"""Pieces of work on threads of their own, none of which waits for another before its end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Piece = TypeVar("Piece")
Result = TypeVar("Result")

_LOCK = threading.Lock()
_FOUND: list[int] = []  # torch's threads as the first caller found them, once for each one inside


def in_threads(
    work: Callable[[Piece], Result], pieces: Sequence[Piece], *, n_workers: int
) -> list[Result]:
    """``work`` of each piece, in the order of the pieces, by several threads of Python.

    torch's own threads meet after each operation. For operations of a fraction of a millisecond
    that is slow, and very slow where another process holds one of the cores: all wait until it
    gives the core back, up to 10 ms for each. Workers share out torch's threads and meet once.

    Args:
        work: What to do with a piece; gradients are off inside. It may not rely on autocast.
        pieces: Of about equal cost, which may depend on nothing that another one writes.
        n_workers: Threads at most, 1 or more; with one, all is done here with all of torch's.

    Returns:
        A result for each piece. An exception of ``work`` is raised, and pieces left are dropped.
    """
    n_workers = min(n_workers, len(pieces))
    if n_workers < 2:
        with torch.no_grad():
            return [work(piece) for piece in pieces]
    is_inference = torch.is_inference_mode_enabled()  # like gradients, a thread's own

    def work_alone(piece: Piece) -> Result:
        with torch.inference_mode(is_inference), torch.no_grad():
            return work(piece)

    with _threads_kept() as n_threads:
        share = max(1, n_threads // n_workers)
        with ThreadPoolExecutor(n_workers, "neighbours", torch.set_num_threads, (share,)) as pool:
            return list(pool.map(work_alone, pieces))


@contextmanager
def _threads_kept() -> Iterator[int]:
    """How many threads torch has; put back for this thread, and for those that begin later.

    A caller that comes while another is inside may see what the other's workers were given; it
    goes by what the first one found.
    """
    with _LOCK:
        n_threads = _FOUND[0] if _FOUND else torch.get_num_threads()
        _FOUND.append(n_threads)
    try:
        yield n_threads
    finally:
        with _LOCK:
            _FOUND.pop()
            torch.set_num_threads(n_threads)
