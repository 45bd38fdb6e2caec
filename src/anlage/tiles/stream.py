"""Batches of tiles, their bytes fetched and their regions decoded by threads ahead of their use.

Shape suffixes: B tiles in the batch, V views, S tile edge, 3 colour channels.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from anlage.distributed import ALONE, Ranks
from anlage.slides.catalogue import Catalogue
from anlage.slides.colour import Colour
from anlage.slides.levels import Decode
from anlage.tiles.filters import TileFilter
from anlage.tiles.handles import SlideHandles
from anlage.tiles.quarantine import ErrorPolicy, QuarantineJournal
from anlage.tiles.region_reads import RegionReads, TileSettings
from anlage.tiles.sampling import TileRequest
from anlage.tiles.tile_draws import TileDraws
from anlage.tiles.window_reads import GrowingBatch, Share

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class TileBatch:
    """One step's tiles.

    Attributes:
        g: (B,) int64 global indices; row i of everything else belongs to ``g[i]``.
        pixels: (B, 3, S, S) uint8 RGB on the CPU, channels last in memory, pinned where there is a
            CUDA device; (B, V, 3, S, S) where the sampler asks for several views of each centre.
        requests: Where each tile came from.
        n_read_errors: Tiles that could not be read and were drawn again.
        rejected: Tiles that a filter rejected and that were drawn again, by the filter's name.
    """

    g: NDArray[np.int64]
    pixels: Tensor
    requests: list[TileRequest]
    n_read_errors: int
    rejected: Counter[str]


class TileStream:
    """Reads the sampler's tiles in threads, ahead of their use; a context manager.

    Each region is decoded once and its tiles are written straight into the batches they belong to.
    Regions are begun in the order in which they are needed. At most one window of samples and
    ``prefetch`` batches are under way or waiting for their step. On slides in an object store the
    bytes of up to 64 regions are on their way while others are decoded.

    The tiles of a batch are a function of the sampler's seed and the step alone, whatever the
    number of threads or ranks, and wherever a run begins: only the tiles of its own rank and steps
    are cut. A tile that cannot be read or that a filter rejects is replaced by the next attempt of
    the same g, so a damaged or vanished slide costs its tiles and not the run; it is logged, and
    counted. After ``errors.quarantine_after`` errors a slide is drawn no more; the journal says
    from which step. Leaving the ``with`` block stops the threads and closes the slides.

    Attributes:
        sampler: What is drawn.
        wait_s: Seconds the consumer has waited for tiles so far.
        read_errors: Tiles lost in the batches so far, by slide_id.
        rejected: Tiles rejected in the batches so far, by the filter's name.
        quarantined: Slides drawn no more, with the first step that holds for.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        sampler: TileDraws,
        *,
        threads: int = 2,
        prefetch: int = 3,
        filters: Sequence[TileFilter] = (),
        errors: ErrorPolicy = ErrorPolicy(),  # noqa: B008 - immutable
        journal: Path | None = None,
        decode: Decode = "scaled",
        colour: Colour = "stored",
    ) -> None:
        """Replay the journal, if there is one, and start the threads.

        Args:
            catalogue: Opens the slides.
            sampler: What is drawn; it is told of quarantines.
            threads: Threads that decode.
            prefetch: Batches read ahead of the one in use, beside the rest of its window.
            filters: Judge each tile after it was read; the first that rejects it is counted.
            errors: What happens to a tile that cannot be read.
            journal: File of read errors and quarantines, needed to resume with quarantines.
            decode: ``scaled`` lets JPEG tiles be decoded at 1/2, 1/4 or 1/8 where the mpp allows.
            colour: ``srgb`` converts by the slide's ICC profile.

        Raises:
            ValueError: If there is no thread or no batch to read ahead.
            CheckpointError: If the journal is damaged.
        """
        if threads < 1 or prefetch < 1:
            msg = (
                "TileStream: needs at least 1 thread and 1 batch read ahead; got "
                f"threads={threads}, prefetch={prefetch}. Two threads and three batches suit most."
            )
            raise ValueError(msg)
        self.sampler = sampler
        self.wait_s = 0.0
        self.read_errors: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self._prefetch, self._errors = prefetch, errors
        self._journal = QuarantineJournal(journal, errors)
        for slide in self._journal.quarantined.values():
            sampler.quarantine(slide.slide_id, from_step=slide.from_step)
        self._handles = SlideHandles(catalogue.open_slide)
        self._reads = RegionReads(
            catalogue,
            sampler,
            self._handles,
            threads=threads,
            settings=TileSettings(decode, colour, tuple(filters), errors.on_error == "resample"),
            failed=self._journal.failed,
        )

    @property
    def quarantined(self) -> dict[str, int]:
        """Slides that are drawn no more, and from which step on."""
        return {name: slide.from_step for name, slide in self._journal.quarantined.items()}

    def batches(
        self, first_step: int, last_step: int, *, ranks: Ranks = ALONE
    ) -> Iterator[TileBatch]:
        """The batches of steps ``first_step`` to ``last_step - 1``.

        Args:
            first_step: Step of the first batch; a resumed run begins here as if never stopped.
            last_step: Step after the last batch.
            ranks: Processes that share each step, this one among them; as many as divide the
                sampler's batch size. Where slides can be quarantined they tell each other of their
                read errors, so that a quarantine holds on all of them from the same step.

        Yields:
            One batch a step, in order.

        Raises:
            TrainingError: If 100 attempts of one g cannot be read or are rejected.
            SlideError: If a tile cannot be read and errors are not to be resampled.
            ValueError: If the ranks cannot share a batch.
            RuntimeError: If the stream is closed before the last batch.
        """
        share = Share(first_step, last_step, self.sampler.batch_size, ranks.rank, ranks.world_size)
        with self._reads.of(share, ahead_steps=self._ahead_steps) as growing:
            for step in range(first_step, last_step):
                began = time.perf_counter()
                batch = growing.wait_for(step)
                self.wait_s += time.perf_counter() - began
                self._count(batch, ranks)
                growing.release(step)
                requests = [request for request in batch.requests if request is not None]
                rejected = Counter(batch.rejected)
                yield TileBatch(batch.g, batch.pixels, requests, len(batch.errors), rejected)

    def close(self) -> None:
        """Stop the threads once they have read their current tile, and close all slides."""
        self._reads.close()
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

    @property
    def _ahead_steps(self) -> int:
        """Steps beyond the one in use of which something may be under way."""
        return self.sampler.steps_per_window + self._prefetch

    def _count(self, batch: GrowingBatch, ranks: Ranks) -> None:
        """Take down what went wrong in a finished batch, in the order of g.

        Read errors of other ranks count towards a quarantine; only rank 0 writes the journal.
        """
        self.rejected.update(batch.rejected)
        for error in sorted(batch.errors, key=lambda error: (error.g, error.attempt)):
            self.read_errors[error.slide_id] += 1
            is_first = self.read_errors[error.slide_id] == 1
            level = logging.WARNING if is_first else logging.DEBUG
            told = "%s: tile %d of step %d drawn again: %s"
            LOGGER.log(level, told, error.slide_id, error.g, error.step, error.error)
        n_steps = self.sampler.steps_per_window
        untouched = ((batch.step + self._ahead_steps) // n_steps + 1) * n_steps
        of_all = [batch.errors]
        if self._errors.quarantine_after is not None:
            of_all = ranks.objects(list(batch.errors))
        errors = list(chain.from_iterable(of_all))
        decided = self._journal.note(
            batch.step, errors, from_step=untouched, is_written=ranks.is_main
        )
        for slide in decided:
            self.sampler.quarantine(slide.slide_id, from_step=slide.from_step)
            told = "%s is drawn no more from step %d on: %d tiles could not be read (%s)"
            LOGGER.warning(told, slide.slide_id, slide.from_step, slide.n_errors, slide.first_error)
