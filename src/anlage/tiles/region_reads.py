"""Reads regions in threads and writes their tiles into the batches they belong to.

Shape suffixes: V views, S tile edge, 3 colour channels.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from anlage.errors import SlideError, TrainingError
from anlage.slides.catalogue import Catalogue
from anlage.slides.colour import Colour
from anlage.slides.levels import Decode
from anlage.slides.regions import PendingTiles, start_tiles
from anlage.tiles.filters import TileFilter
from anlage.tiles.handles import SharedSlide, SlideHandles
from anlage.tiles.quarantine import ReadError
from anlage.tiles.sampling import TileRequest
from anlage.tiles.tile_draws import TileDraws
from anlage.tiles.urgent_first import UrgentFirst
from anlage.tiles.window_reads import (
    GrowingBatch,
    RegionNeed,
    Share,
    empty_batch,
    regions_needed,
)

MAX_ATTEMPTS = 100
FETCHERS = 16  # threads that open remote slides and ask for bytes; they mostly wait
FETCHED_AHEAD = 64  # regions whose bytes are under way or waiting to be decoded
Tiles = Sequence[NDArray[np.uint8] | SlideError]


@dataclass(frozen=True, slots=True)
class TileSettings:
    """How tiles are read and judged.

    Attributes:
        decode: Whether JPEG tiles may be decoded at a reduced size.
        colour: Whether pixels are converted to sRGB.
        filters: Judge each tile after it was read.
        is_resampling: Whether a tile that cannot be read is drawn again.
    """

    decode: Decode
    colour: Colour
    filters: tuple[TileFilter, ...]
    is_resampling: bool


class RegionReads:
    """The threads of a stream.

    Local regions are read and decoded by one thread in one go; where a catalogue has remote
    slides, other threads open them and ask for their bytes first.

    Args:
        catalogue: Says whether there are remote slides.
        sampler: Says what lies in a region.
        handles: Lends the slides.
        threads: Threads that decode.
        settings: How tiles are read and judged.
        failed: Draws that failed before the run was resumed; they fail again without being tried.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        sampler: TileDraws,
        handles: SlideHandles,
        *,
        threads: int,
        settings: TileSettings,
        failed: Mapping[tuple[int, int], ReadError],
    ) -> None:
        self.sampler, self.handles, self.settings = sampler, handles, settings
        self.failed = failed
        self.n_views = len(sampler.view_mpp_factors)
        self.decoders = UrgentFirst(threads, name="anlage-tiles")
        is_remote = _has_remote(catalogue)
        self.fetchers = UrgentFirst(FETCHERS, name="anlage-tiles-fetch") if is_remote else None
        self.room = threading.Semaphore(FETCHED_AHEAD)
        self.is_closed = False
        self._growing: set[GrowingBatches] = set()

    @contextmanager
    def of(self, share: Share, *, ahead_steps: int) -> Iterator[GrowingBatches]:
        """The batches of a share, growing; what is under way is dropped at the end of the block."""
        growing = GrowingBatches(self, share, ahead_steps=ahead_steps)
        self._growing.add(growing)
        try:
            yield growing
        finally:
            self._growing.discard(growing)
            growing.is_dropped = True

    def close(self) -> None:
        """Stop all threads once they have done what they are at; the rest is dropped.

        Whoever still waits for a batch, or does so afterwards, is told.
        """
        self.is_closed = True
        for growing in list(self._growing):
            growing.wake()
        self.room.release(FETCHERS)  # nobody waits for room any more
        if self.fetchers is not None:
            self.fetchers.close()
        self.decoders.close()


class GrowingBatches:
    """The batches of one share while their tiles arrive."""

    def __init__(self, reads: RegionReads, share: Share, *, ahead_steps: int) -> None:
        self.is_dropped = False
        self._reads, self._share, self._ahead_steps = reads, share, ahead_steps
        self._needs = regions_needed(reads.sampler, share)
        self._next = next(self._needs, None)
        self._batches: dict[int, GrowingBatch] = {}
        self._n_under_way = 0
        self._changed = threading.Condition()
        self._fatal: BaseException | None = None
        self._begin(share.first_step)

    def wait_for(self, step: int) -> GrowingBatch:
        """The batch of a step, complete.

        Raises:
            SlideError: If a tile cannot be read and errors are not resampled.
            TrainingError: If all attempts of one g failed.
            RuntimeError: If the threads have been stopped.
        """
        with self._changed:
            while self._fatal is None and self._batch(step).n_missing:
                if self._reads.is_closed:
                    msg = "TileStream.batches: the stream is closed. Read within its `with` block."
                    raise RuntimeError(msg)
                self._changed.wait()
            if self._fatal is not None:
                raise self._fatal
        batch = self._batch(step)
        if batch.failures:
            raise batch.failures[min(batch.failures)]
        return batch

    def wake(self) -> None:
        """Have ``wait_for`` look again."""
        with self._changed:
            self._changed.notify_all()

    def release(self, step: int) -> None:
        """Forget a finished batch and begin what there is room for now."""
        with self._changed:
            del self._batches[step]
        self._n_under_way -= self._share.n_slots
        self._begin(step + 1)

    def _begin(self, step: int) -> None:
        """Begin regions while what is under way fits into ``ahead_steps`` from ``step`` on."""
        n_steps = self._reads.sampler.steps_per_window
        last_window = (step + self._ahead_steps - 1) // n_steps
        room = self._ahead_steps * self._share.n_slots
        while (need := self._next) is not None:
            if need.step // n_steps > last_window or self._n_under_way + need.n_tiles > room:
                return
            self._n_under_way += need.n_tiles
            self._submit(need.step, partial(self._read_region, need))
            self._next = next(self._needs, None)

    def _batch(self, step: int) -> GrowingBatch:
        """The batch of a step, made when the first of its tiles arrives or it is waited for."""
        if step not in self._batches:
            n_views, size_px = self._reads.n_views, self._reads.sampler.size_px
            self._batches[step] = empty_batch(self._share, step, n_views=n_views, size_px=size_px)
        return self._batches[step]

    def _submit(self, step: int, task: Callable[[], None]) -> None:
        pool = self._reads.fetchers or self._reads.decoders
        pool.submit(step, partial(self._guarded, task))

    def _guarded(self, task: Callable[[], None]) -> None:
        """Do a task; what it raises is raised in the consumer."""
        if self.is_dropped or self._reads.is_closed:
            return
        try:
            task()
        except BaseException as error:  # noqa: BLE001 - handed to the consumer, whatever it is
            with self._changed:
                self._fatal = self._fatal or error
                self._changed.notify_all()

    def _read_region(self, need: RegionNeed) -> None:
        requests = self._reads.sampler.draw_region(need.region)
        self._read([r for r in requests if self._share.holds(r.g)], need.step)

    def _read_again(self, g: int, attempt: int) -> None:
        self._read([self._reads.sampler.draw(g, attempt=attempt)], self._share.step_of(g))

    def _read(self, requests: list[TileRequest], step: int) -> None:
        """Ask for the bytes of tiles of one slide, then decode them here or in another thread."""
        reads, failed = self._reads, self._reads.failed
        known = [r for r in requests if (r.g, r.attempt) in failed]
        if known:  # before this run was resumed
            self._settle([(r, SlideError(r.slide_id, failed[r.g, r.attempt].error)) for r in known])
            requests = [r for r in requests if (r.g, r.attempt) not in failed]
        if not requests:
            return
        if reads.fetchers is None:
            started = self._start(requests)
            if started is not None:
                self._decode(requests, *started)
            return
        reads.room.acquire()
        if reads.is_closed:
            return
        started = self._start(requests)
        if started is None:
            reads.room.release()
            return
        reads.decoders.submit(step, partial(self._decode_fetched, requests, *started))

    def _start(self, requests: list[TileRequest]) -> tuple[SharedSlide, PendingTiles] | None:
        """Open the slide and ask for the bytes; None if the slide cannot be opened."""
        reads, settings = self._reads, self._reads.settings
        windows = [window for request in requests for window in request.views]
        try:
            shared = reads.handles.take(requests[0].slide_id)
        except (SlideError, OSError) as error:
            self._settle([(request, error) for request in requests])
            return None
        try:
            pending = start_tiles(
                shared.slide, windows, decode=settings.decode, colour=settings.colour
            )
        except (SlideError, OSError) as error:
            reads.handles.give_back(shared, is_damaged=True)
            self._settle([(request, error) for request in requests])
            return None
        return shared, pending

    def _decode_fetched(
        self, requests: list[TileRequest], shared: SharedSlide, pending: PendingTiles
    ) -> None:
        self._reads.room.release()
        if self.is_dropped or self._reads.is_closed:
            self._reads.handles.give_back(shared)
        else:
            self._guarded(partial(self._decode, requests, shared, pending))

    def _decode(
        self, requests: list[TileRequest], shared: SharedSlide, pending: PendingTiles
    ) -> None:
        """Decode the tiles of some requests and write them where they belong."""
        is_damaged = True
        try:
            tiles: Tiles = pending.read()
            is_damaged = any(isinstance(tile, SlideError) for tile in tiles)
        except (SlideError, OSError) as error:
            self._settle([(request, error) for request in requests])
            return
        finally:
            self._reads.handles.give_back(shared, is_damaged=is_damaged)
        n = self._reads.n_views
        views = (tiles[i : i + n] for i in range(0, len(tiles), n))
        self._settle([(r, self._written(r, seen)) for r, seen in zip(requests, views, strict=True)])

    def _written(self, request: TileRequest, views: Tiles) -> Exception | TileFilter | None:
        """Write a tile into its slot; else the error, or the filter that rejects it."""
        pixels = []
        for view in views:
            if isinstance(view, SlideError):
                return view
            pixels.append(view)
        for judge in self._reads.settings.filters:
            if not judge.keeps(pixels[0], mpp=request.mpp):
                return judge
        with self._changed:
            batch = self._batch(self._share.step_of(request.g))
        into_VSS3 = batch.slots_BVSS3[self._share.slot_of(request.g)]
        for slot_SS3, tile_SS3 in zip(into_VSS3, pixels, strict=True):
            slot_SS3[:] = tile_SS3
        return None

    def _settle(
        self, outcomes: Sequence[tuple[TileRequest, Exception | TileFilter | None]]
    ) -> None:
        """Take down what became of some draws; those that gave no tile are drawn again."""
        again, is_complete = [], False
        with self._changed:
            for request, outcome in outcomes:
                batch = self._batch(self._share.step_of(request.g))
                if outcome is not None and self._take_down(batch, request, outcome):
                    again.append(request)
                    continue
                batch.requests[self._share.slot_of(request.g)] = request
                batch.n_missing -= 1
                is_complete = is_complete or batch.n_missing == 0
            if is_complete:
                self._changed.notify_all()
        for request in again:
            step, attempt = self._share.step_of(request.g), request.attempt + 1
            self._submit(step, partial(self._read_again, request.g, attempt))

    def _take_down(
        self, batch: GrowingBatch, request: TileRequest, outcome: Exception | TileFilter
    ) -> bool:
        """Count a draw that gave no tile; whether there is another attempt."""
        g, attempt, slide_id = request.g, request.attempt, request.slide_id
        if isinstance(outcome, Exception):
            told = outcome.message if isinstance(outcome, SlideError) else str(outcome)
            batch.errors.append(ReadError(batch.step, g, attempt, slide_id, told))
            if not self._reads.settings.is_resampling:
                batch.failures[g] = outcome
                return False
        else:
            batch.rejected.append(outcome.name)
        if attempt + 1 < MAX_ATTEMPTS:
            return True
        batch.failures[g] = _no_tile(batch, g)
        return False


def _no_tile(batch: GrowingBatch, g: int) -> TrainingError:
    errors = [error for error in batch.errors if error.g == g]
    lost = sorted({error.slide_id for error in errors})
    first = f" The first error: {errors[0].slide_id}: {errors[0].error}" if errors else ""
    filters = sorted(set(batch.rejected))
    rejected = f" or passes the filters ({', '.join(filters)})" if filters else ""
    return TrainingError(
        ", ".join(lost[:5]) or "the catalogue",
        f"no tile of {MAX_ATTEMPTS} draws of sample {g} could be read{rejected}. Check that the "
        f"slides are still where the catalogue says, and that the filters fit the stain.{first}",
    )


def _has_remote(catalogue: Catalogue) -> bool:
    """Whether any slide of a catalogue lies behind a URL; makes no object a row."""
    return bool(pc.any(pc.match_substring(catalogue.column("uri"), "://")).as_py())
