"""Tiles of one slide after the other, read by threads ahead of the encoder, in order.

Shape suffixes: B tiles of a batch, S tile edge.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, islice
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anlage.embedding.slide_plan import SlideJob
from anlage.errors import AnlageError
from anlage.slides.catalogue import Catalogue
from anlage.slides.colour import Colour, profile_digest, slide_converter
from anlage.slides.levels import read_tile
from anlage.tiles.handles import SlideHandles
from anlage.tiles.spec import TileSpec

PREFETCH_BATCHES = 3


@dataclass(frozen=True, slots=True)
class Piece:
    """Neighbouring rows of a batch that belong to one slide.

    Attributes:
        job: The slide.
        rows: Their rows in the slide's bag.
        slots: Their rows in the batch.
    """

    job: SlideJob
    rows: slice
    slots: slice


@dataclass(frozen=True, slots=True, eq=False)
class ReadBatch:
    """Tiles of one or several slides.

    Attributes:
        pixels_B3SS: (B, 3, S, S) uint8 RGB on the CPU, pinned where there is a CUDA device.
        pieces: Whose they are. The pixels of a slide with a ``reason`` mean nothing.
    """

    pixels_B3SS: Tensor
    pieces: list[Piece]


class TileReadAhead:
    """Reads the tiles of jobs in order, a few batches ahead of their use; a context manager.

    Batches run over the ends of slides, so that the encoder never waits for a slide to begin. A
    tile that cannot be read gives its job a ``reason``; the rest of that slide is left out.

    Attributes:
        wait_s: Seconds the consumer has waited for tiles.
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
        self._handles = SlideHandles(catalogue.open_slide, max_open=2 * threads)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="anlage-embed")
        self.wait_s = 0.0

    def batches(self, jobs: Iterable[SlideJob]) -> Iterator[ReadBatch]:
        """All tiles of all jobs, ``batch_size`` at a time; only the last batch may be shorter."""
        tiles = ((job, row) for job in jobs for row in range(len(job.corners)) if not job.reason)
        pending: deque[tuple[ReadBatch, list[Future[None]]]] = deque()
        while True:
            while len(pending) < PREFETCH_BATCHES:
                chosen = list(islice(tiles, self._batch_size))
                if not chosen:
                    break
                pending.append(self._start(chosen))
            if not pending:
                return
            batch, reads = pending.popleft()
            began = time.perf_counter()
            for read in reads:
                read.result()
            self.wait_s += time.perf_counter() - began
            yield batch

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._handles.close()

    def _start(self, chosen: list[tuple[SlideJob, int]]) -> tuple[ReadBatch, list[Future[None]]]:
        size_px = self._spec.size_px
        shape = (len(chosen), 3, size_px, size_px)
        pixels_B3SS = torch.empty(shape, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
        slots = zip(chosen, pixels_B3SS.numpy(), strict=True)
        reads = [self._threads.submit(self._read, job, row, into) for (job, row), into in slots]
        return ReadBatch(pixels_B3SS, list(_pieces(chosen))), reads

    def _read(self, job: SlideJob, row: int, into_3SS: NDArray[np.uint8]) -> None:
        if job.reason:
            return
        x, y = job.corners[row].tolist()
        try:
            with self._handles.borrow(job.row.slide_id) as slide:
                convert = slide_converter(slide, self._colour)
                if self._colour == "srgb" and not job.icc_profile:
                    job.icc_profile = profile_digest(slide.icc_profile)
                tile_SS3 = read_tile(slide, x, y, size_px=self._spec.size_px, mpp=self._spec.mpp)
        except (AnlageError, OSError) as error:
            job.reason = error.message if isinstance(error, AnlageError) else str(error)
            return
        into_3SS[:] = (convert(tile_SS3) if convert else tile_SS3).transpose(2, 0, 1)


def _pieces(chosen: list[tuple[SlideJob, int]]) -> Iterator[Piece]:
    first_slot = 0
    for _, group in groupby(chosen, key=lambda tile: id(tile[0])):
        tiles = list(group)
        job, first_row = tiles[0]
        n_tiles = len(tiles)
        rows = slice(first_row, first_row + n_tiles)
        yield Piece(job, rows, slice(first_slot, first_slot + n_tiles))
        first_slot += n_tiles
