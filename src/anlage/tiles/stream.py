"""Batches of tiles, read by threads ahead of their use.

Shape suffixes: B tiles in the batch, S tile edge.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anlage.errors import SlideError, TrainingError
from anlage.slides.catalogue import Catalogue
from anlage.slides.levels import read_tile
from anlage.tiles.handles import SlideHandles
from anlage.tiles.sampling import TileRequest, TileSampler, batch_indices

LOGGER = logging.getLogger(__name__)
MAX_ATTEMPTS = 100
MAX_IDLE_HANDLES = 64


@dataclass(frozen=True, slots=True, eq=False)
class TileBatch:
    """One step's tiles.

    Attributes:
        g: (B,) int64 global indices; row i of everything else belongs to ``g[i]``.
        pixels: (B, 3, S, S) uint8 RGB on the CPU, pinned where there is a CUDA device.
        requests: Where each tile came from.
        n_read_errors: Tiles that could not be read and were drawn again.
    """

    g: NDArray[np.int64]
    pixels: Tensor
    requests: list[TileRequest]
    n_read_errors: int


@dataclass(frozen=True, slots=True, eq=False)
class _Pending:
    """A batch that is being read."""

    g: NDArray[np.int64]
    pixels_B3SS: Tensor
    reads: list[Future[tuple[TileRequest, int]]]


class TileStream:
    """Reads the sampler's tiles in threads, ``prefetch`` batches ahead; a context manager.

    The tiles of a batch are a function of the sampler's seed and the step alone, whatever the
    number of threads. A tile that cannot be read is replaced by the next attempt of the same g, so
    a damaged or vanished slide costs its tiles and not the run; it is logged, and counted in
    ``read_errors``. Leaving the ``with`` block stops the threads and closes the slides.

    Attributes:
        sampler: What is drawn.
        prefetch: Batches being read ahead of the one in use.
        wait_s: Seconds the consumer has waited for tiles so far.
        read_errors: Tiles lost so far, by slide_id.
    """

    def __init__(
        self, catalogue: Catalogue, sampler: TileSampler, *, threads: int = 2, prefetch: int = 3
    ) -> None:
        if threads < 1 or prefetch < 1:
            msg = (
                "TileStream: needs at least 1 thread and 1 batch read ahead; got "
                f"threads={threads}, prefetch={prefetch}. Two threads and three batches suit most."
            )
            raise ValueError(msg)
        self.sampler, self.prefetch = sampler, prefetch
        self.wait_s = 0.0
        self.read_errors: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._handles = SlideHandles(catalogue.open_slide, max_idle=MAX_IDLE_HANDLES)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="anlage-tiles")

    def batches(
        self,
        first_step: int,
        last_step: int,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> Iterator[TileBatch]:
        """The batches of steps ``first_step`` to ``last_step - 1``.

        Args:
            first_step: Step of the first batch; a resumed run begins here as if never stopped.
            last_step: Step after the last batch.
            batch_size: Tiles a batch, of this rank.
            rank: This process among those that share each step.
            world_size: Processes that share each step.

        Yields:
            One batch a step, in order.

        Raises:
            TrainingError: If 100 attempts of one g cannot be read.
        """
        g_of_steps = (
            batch_indices(step, batch_size=batch_size, rank=rank, world_size=world_size)
            for step in range(first_step, last_step)
        )
        pending = deque(self._start(g) for g in islice(g_of_steps, self.prefetch))
        try:
            while pending:
                batch = self._finish(pending[0])
                pending.popleft()
                pending.extend(self._start(g) for g in islice(g_of_steps, 1))
                yield batch
        finally:
            for started in pending:
                for read in started.reads:
                    read.cancel()

    def close(self) -> None:
        """Stop the threads once they have read their current tile, and close all slides."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._handles.close()
        if self.read_errors:
            lost = ", ".join(f"{name}: {n}" for name, n in self.read_errors.most_common(20))
            total, slides = self.read_errors.total(), len(self.read_errors)
            LOGGER.warning("%d tiles of %d slides could not be read (%s)", total, slides, lost)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self, g: NDArray[np.int64]) -> _Pending:
        size_px, pin = self.sampler.size_px, torch.cuda.is_available()
        shape = (len(g), 3, size_px, size_px)
        pixels_B3SS = torch.empty(shape, dtype=torch.uint8, pin_memory=pin)
        slots = pixels_B3SS.numpy()
        pairs = zip(g.tolist(), slots, strict=True)
        reads = [self._threads.submit(self._read, index, slot) for index, slot in pairs]
        return _Pending(g, pixels_B3SS, reads)

    def _finish(self, pending: _Pending) -> TileBatch:
        began = time.perf_counter()
        done = [read.result() for read in pending.reads]
        self.wait_s += time.perf_counter() - began
        requests = [request for request, _ in done]
        return TileBatch(pending.g, pending.pixels_B3SS, requests, sum(n for _, n in done))

    def _read(self, g: int, into_3SS: NDArray[np.uint8]) -> tuple[TileRequest, int]:
        """Read the first attempt of ``g`` that can be read; also says how many could not."""
        for attempt in range(MAX_ATTEMPTS):
            request = self.sampler.draw(g, attempt=attempt)
            try:
                with self._handles.borrow(request.slide_id) as slide:
                    x, y, size_px, mpp = request.x, request.y, request.size_px, request.mpp
                    tile_SS3 = read_tile(slide, x, y, size_px=size_px, mpp=mpp)
            except (SlideError, OSError) as error:
                self._note(request, error)
                continue
            into_3SS[:] = tile_SS3.transpose(2, 0, 1)
            return request, attempt
        raise TrainingError(
            ", ".join(sorted(self.read_errors)[:5]),
            f"no tile of {MAX_ATTEMPTS} draws of sample {g} could be read. Check that the slides "
            "are still where the catalogue says; the log names the first error of each.",
        )

    def _note(self, request: TileRequest, error: Exception) -> None:
        with self._lock:
            self.read_errors[request.slide_id] += 1
            is_first = self.read_errors[request.slide_id] == 1
        level = logging.WARNING if is_first else logging.DEBUG
        where = f"({request.x}, {request.y}) at {request.mpp:g} mpp"
        LOGGER.log(level, "%s: tile %s redrawn: %s", request.slide_id, where, error)
