"""Tiles of one slide after the other, read by threads ahead of the encoder.

Shape suffixes: B tiles of a batch, N tiles of a block, S tile edge.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from math import ceil
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anlage.embedding.growing_bag import SlideJob
from anlage.errors import AnlageError, SlideError
from anlage.geometry import level0_px
from anlage.slides.catalogue import Catalogue
from anlage.slides.colour import Colour, profile_digest
from anlage.slides.levels import TileWindow
from anlage.slides.regions import PendingTiles, start_tiles
from anlage.tiles.handles import SharedSlide, SlideHandles
from anlage.tiles.spec import TileSpec

PREFETCH_BATCHES = 3  # at least; more where it takes them to give every thread a block
BLOCK_PX = 2048  # edge of a block of neighbouring tiles, pixels at their mpp
MOST_TILES = 128  # of a block, which tiles that overlap would fill with thousands
Opening = Future[tuple[SharedSlide, PendingTiles] | None]  # None: the slide is refused


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of a batch that belong to one slide.

    Attributes:
        job: The slide.
        rows: (N,) int64, their rows in the slide's bag.
        slots: Their rows in the batch.
    """

    job: SlideJob
    rows: NDArray[np.int64]
    slots: slice


@dataclass(frozen=True, slots=True, eq=False)
class ReadBatch:
    """Tiles of one or several slides.

    Attributes:
        pixels_B3SS: (B, 3, S, S) uint8 RGB on the CPU, channels last in memory, as tiles are
            decoded: pinned where there is a CUDA device.
        pieces: Whose they are. The pixels of a slide with a ``reason`` mean nothing.
    """

    pixels_B3SS: Tensor
    pieces: list[Piece]


@dataclass(slots=True, eq=False)
class _GrowingBatch:
    """A batch that is being read; ``n_given`` of its slots have been given to tiles."""

    pixels_BSS3: Tensor
    n_given: int = 0
    pieces: list[Piece] = field(default_factory=list)
    reads: list[Future[None]] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        return self.n_given == len(self.pixels_BSS3)


class TileReadAhead:
    """Reads the tiles of jobs, a few batches ahead of their use; a context manager.

    Neighbouring tiles of a slide are read together, so that the native tiles below them are
    decoded once for the whole block. Each thread has a block to read, however small the batches
    are; memory is bounded by threads and batch, not by slides. Batches run over the ends of blocks
    and slides, so that the encoder never waits for a slide to begin. A tile that cannot be read
    gives its job a ``reason``; the rest of that slide is left out.

    Attributes:
        wait_s: Seconds the consumer has waited for tiles, or for the next job.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        spec: TileSpec,
        *,
        batch_size: int,
        threads: int,
        colour: Colour = "stored",
    ) -> None:
        self._spec, self._batch_size, self._colour = spec, batch_size, colour
        n_in_block = min(max(1, BLOCK_PX // spec.stride_px) ** 2, MOST_TILES)
        self._n_ahead = max(PREFETCH_BATCHES, ceil(threads * n_in_block / batch_size) + 1)
        self._handles = SlideHandles(catalogue.open_slide, max_open=2 * threads)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="anlage-embed")
        # Opens slides and asks for their bytes; where those are remote this is waiting, not work.
        self._openers = ThreadPoolExecutor(threads, thread_name_prefix="anlage-embed-open")
        self.wait_s = 0.0

    def batches(self, jobs: Iterable[SlideJob]) -> Iterator[ReadBatch]:
        """All tiles of all jobs, ``batch_size`` at a time; only the last batch may be shorter."""
        blocks = chain.from_iterable(_blocks(job, self._spec) for job in jobs)
        growing: deque[_GrowingBatch] = deque()
        is_over = False
        while True:
            while not is_over and sum(batch.is_full for batch in growing) < self._n_ahead:
                began = time.perf_counter()
                block = next(blocks, None)
                self.wait_s += time.perf_counter() - began
                is_over = block is None
                if block is not None:
                    self._start(*block, growing)
            if not growing:
                return
            batch = growing.popleft()
            began = time.perf_counter()
            for read in batch.reads:
                read.result()
            self.wait_s += time.perf_counter() - began
            pixels_BSS3 = batch.pixels_BSS3[: batch.n_given]
            yield ReadBatch(pixels_BSS3.permute(0, 3, 1, 2), batch.pieces)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for pool in (self._openers, self._threads):
            pool.shutdown(wait=True, cancel_futures=True)
        self._handles.close()

    def _start(self, job: SlideJob, rows: NDArray[np.int64], growing: deque[_GrowingBatch]) -> None:
        """Give the tiles of a block their slots, in as many batches as it takes, and read them."""
        if job.reason:
            return
        targets: list[NDArray[np.uint8]] = []
        touched: list[_GrowingBatch] = []
        while len(targets) < len(rows):
            if not growing or growing[-1].is_full:
                growing.append(self._empty_batch())
            batch = growing[-1]
            first = batch.n_given
            taken = rows[len(targets) : len(targets) + self._batch_size - first]
            slots = slice(first, first + len(taken))
            batch.pieces.append(Piece(job, taken, slots))
            batch.n_given = slots.stop
            targets += list(batch.pixels_BSS3[slots].numpy())
            touched.append(batch)
        opening = self._openers.submit(self._open, job, rows)
        read = self._threads.submit(self._read, job, opening, targets)
        read.add_done_callback(partial(self._give_back_unread, opening))
        for batch in touched:
            batch.reads.append(read)

    def _empty_batch(self) -> _GrowingBatch:
        shape = (self._batch_size, self._spec.size_px, self._spec.size_px, 3)
        pin_memory = torch.cuda.is_available()
        return _GrowingBatch(torch.empty(shape, dtype=torch.uint8, pin_memory=pin_memory))

    def _open(
        self, job: SlideJob, rows: NDArray[np.int64]
    ) -> tuple[SharedSlide, PendingTiles] | None:
        """Open the slide of a block and ask for its bytes; None if the slide is refused."""
        if job.reason:
            return None
        window = partial(TileWindow, size_px=self._spec.size_px, mpp=self._spec.mpp)
        windows = [window(x, y) for x, y in job.corners[rows].tolist()]
        shared: SharedSlide | None = None
        try:
            shared = self._handles.take(job.row.slide_id)
            if self._colour == "srgb" and not job.icc_profile:
                job.icc_profile = profile_digest(shared.slide.icc_profile)
            return shared, start_tiles(shared.slide, windows, colour=self._colour)
        except (AnlageError, OSError) as error:
            job.reason = _reason(error)
            if shared is not None:
                self._handles.give_back(shared, is_damaged=True)
            return None

    def _give_back_unread(self, opening: Opening, read: Future[None]) -> None:
        """Give back the slide of a block that nobody has read by the end of the ``with`` block."""
        if not read.cancelled() or opening.cancelled() or opening.exception() is not None:
            return
        opened = opening.result()
        if opened is not None:
            self._handles.give_back(opened[0])

    def _read(
        self,
        job: SlideJob,
        opening: Opening,
        targets: list[NDArray[np.uint8]],
    ) -> None:
        opened = opening.result()
        if opened is None:
            return
        shared, pending = opened
        try:
            tiles = [] if job.reason else pending.read()
        except (AnlageError, OSError) as error:
            tiles, job.reason = [], _reason(error)
        finally:
            self._handles.give_back(shared, is_damaged=job.reason is not None)
        for tile_SS3, into_SS3 in zip(tiles, targets if tiles else [], strict=True):
            if isinstance(tile_SS3, SlideError):
                job.reason = job.reason or tile_SS3.message
            else:
                into_SS3[:] = tile_SS3


def _reason(error: AnlageError | OSError) -> str:
    return error.message if isinstance(error, AnlageError) else str(error)


def _blocks(job: SlideJob, spec: TileSpec) -> Iterator[tuple[SlideJob, NDArray[np.int64]]]:
    """A slide's tiles in squares of neighbours: the rows of each, in the order of the bag."""
    if len(job.corners) == 0:
        return
    edge = level0_px(max(BLOCK_PX, spec.size_px), mpp=spec.mpp, slide_mpp=job.row.mpp)
    column, row = np.floor((job.corners + 0.5) / edge).astype(np.int64).T
    block = row * (column.max() + 1) + column
    order = np.argsort(block, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(block[order])) + 1):
        for start in range(0, len(rows), MOST_TILES):
            yield job, rows[start : start + MOST_TILES]
