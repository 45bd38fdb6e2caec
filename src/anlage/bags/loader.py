"""Batches of whole bags for training: packed one after the other, read ahead by threads.

Shape suffixes: T tiles of all bags of a batch, D embedding width, L tiles that a draw takes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anlage.bags.bag_cache import BagCache
from anlage.bags.bag_draws import epoch_order, step_draws
from anlage.bags.bag_set import BagSet, LoadedBag
from anlage.bags.grid_cells import grid_cells
from anlage.bags.recycled_memory import RecycledMemory
from anlage.bags.tile_choice import TileChoice

__all__ = [
    "BagBatch",
    "BagCache",
    "BagSet",
    "LoadedBag",
    "TileChoice",
    "bag_batches",
    "epoch_order",
    "step_draws",
]

FEWEST_AHEAD, MOST_AHEAD = 2, 8  # batches that are begun before the first of them is asked for
AHEAD_BYTES = 2**27  # of those; the fewest may be larger
SERIAL_NUMEL = 32767  # that torch copies without its own threads, which the training needs

Draw = tuple[int, str]


@dataclass(frozen=True, slots=True, eq=False)
class BagBatch:
    """Bags of a step, packed: all tiles one after the other, without padding.

    Attributes:
        slide_ids: Slide of each bag, B of them.
        numbers: Global number g of each draw.
        features_TD: (T, D) float32 tile embeddings on the CPU, pinned where that is asked for.
        corner_T2: (T, 2) int64 corners (x, y), level-0 pixels.
        cell_T2: (T, 2) int64 cells (x, y) of the slide encoder's grid, from 0.
        lengths: Tiles of each bag, at least 1; their sum is T.
    """

    slide_ids: tuple[str, ...]
    numbers: tuple[int, ...]
    features_TD: Tensor
    corner_T2: Tensor
    cell_T2: Tensor
    lengths: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Growing:
    """A batch whose bags are being read into it."""

    batch: BagBatch
    reads: list[Future[None]] = field(default_factory=list)

    def whole(self) -> BagBatch:
        for read in self.reads:
            read.result()
        return self.batch


def bag_batches(
    bags: BagSet,
    draws: Iterable[Sequence[Draw]],
    *,
    grid_um: float,
    threads: int = 2,
    cache: BagCache | None = None,
    choice: TileChoice | None = None,
    is_pinned: bool = False,
) -> Generator[BagBatch]:
    """The bags of each step: the same batches whatever the number of threads.

    Threads read ahead: the next step, and up to six more while all take less than 128 MiB. Closing
    the generator stops them.

    Args:
        bags: The bags.
        draws: For each step pairs (g, slide_id), at least one, as ``step_draws`` gives them.
        grid_um: Edge of a cell of the slide encoder's grid, micrometres.
        threads: Threads that read, at least 1.
        cache: Bags in memory, of this set or of one that it is part of, which outlive the
            generator; None for a new one.
        choice: Which tiles of each bag to take, and in which order; None for all as they are.
        is_pinned: Put features where a CUDA device, which must be there, reads them without a wait.

    Raises:
        BagError: If a bag cannot be read, was replaced, or holds NaN or an infinity.
        ValueError: If a step has no draw, or a slide is not in the set.
    """
    cache = BagCache(bags) if cache is None else cache
    choice = TileChoice(seed=0) if choice is None else choice
    ahead: deque[_Growing] = deque()
    steps = iter(draws)
    with _Packer(
        bags, cache, choice, grid_um=grid_um, threads=threads, is_pinned=is_pinned
    ) as packer:
        while True:
            for step in _as_many_as_fit(steps, ahead):
                ahead.append(packer.begin(step))
            if not ahead:
                return
            yield ahead.popleft().whole()


def _as_many_as_fit(
    steps: Iterator[Sequence[Draw]], ahead: deque[_Growing]
) -> Iterator[Sequence[Draw]]:
    while len(ahead) < MOST_AHEAD and (
        len(ahead) < FEWEST_AHEAD or sum(g.batch.features_TD.nbytes for g in ahead) < AHEAD_BYTES
    ):
        step = next(steps, None)
        if step is None:
            return
        yield step


class _Packer:
    """Threads that put bags into batches; a context manager."""

    def __init__(
        self,
        bags: BagSet,
        cache: BagCache,
        choice: TileChoice,
        *,
        grid_um: float,
        threads: int,
        is_pinned: bool,
    ) -> None:
        self._bags, self._cache, self._choice, self._grid_um = bags, cache, choice, grid_um
        self._is_pinned, self._memory = is_pinned, RecycledMemory()
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="anlage-bags")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    def begin(self, step: Sequence[Draw]) -> _Growing:
        """A batch with room for all its bags, and threads at work on it."""
        if not step:
            msg = "bag_batches: needs at least one bag a step; got none. Use fewer ranks."
            raise ValueError(msg)
        self._bags.refuse_unknown(slide_id for _, slide_id in step)
        lengths = [self._choice.n_taken(self._bags.facts[s].n_tiles) for _, s in step]
        batch = BagBatch(
            slide_ids=tuple(slide_id for _, slide_id in step),
            numbers=tuple(g for g, _ in step),
            features_TD=self._empty(sum(lengths)),
            corner_T2=torch.empty((sum(lengths), 2), dtype=torch.int64),
            cell_T2=torch.empty((sum(lengths), 2), dtype=torch.int64),
            lengths=tuple(lengths),
        )
        growing = _Growing(batch)
        for draw, end, length in zip(step, accumulate(lengths), lengths, strict=True):
            read = self._threads.submit(self._fill, draw, batch, slice(end - length, end))
            growing.reads.append(read)
        return growing

    def _empty(self, n_tiles: int) -> Tensor:
        """Room for features; torch recycles pinned memory itself."""
        if self._is_pinned:
            return torch.empty((n_tiles, self._bags.width), pin_memory=True)
        return self._memory.empty(n_tiles, self._bags.width)

    def _fill(self, draw: Draw, batch: BagBatch, slots: slice) -> None:
        """Put the tiles of a draw into their rows of a batch."""
        g, slide_id = draw
        bag = self._cache.take(slide_id)
        row_L = self._choice.rows(len(bag.features_LD), g=g)
        corner_L2 = bag.corner_L2 if row_L is None else bag.corner_L2[row_L]
        cell_L2 = grid_cells(corner_L2, slide_mpp=bag.slide_mpp, grid_um=self._grid_um)
        batch.corner_T2[slots] = torch.from_numpy(corner_L2)
        batch.cell_T2[slots] = torch.from_numpy(cell_L2)
        _copy_rows(bag.features_LD, row_L, batch.features_TD[slots])


def _copy_rows(from_LD: Tensor, row_L: NDArray[np.int64] | None, into_LD: Tensor) -> None:
    """Copy rows, all or those chosen, in parts that torch copies in this thread alone."""
    n_rows = max(1, SERIAL_NUMEL // max(1, from_LD.shape[1]))
    chosen_L = None if row_L is None else torch.from_numpy(row_L)
    for first in range(0, len(into_LD), n_rows):
        part = slice(first, first + n_rows)
        into_LD[part].copy_(from_LD[part if chosen_L is None else chosen_L[part]])
