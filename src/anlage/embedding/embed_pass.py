"""One pass over the pixels of slides, for all encoders that see the same tiles."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from anlage.embedding.bag_target import BagTarget
from anlage.embedding.devices import on_each_device
from anlage.embedding.growing_bag import GrowingBag, SlideJob
from anlage.embedding.read_ahead import ReadBatch, TileReadAhead
from anlage.embedding.slide_plan import tiles_of
from anlage.encoders.embed_batch import QueuedTiles
from anlage.errors import BagError
from anlage.progress import meter
from anlage.slides.catalogue import Catalogue

MAX_PENDING_WRITES = 2
SHOWN_BEFORE_WRITTEN = 0.99  # of a slide whose tiles are all embedded

Queued = list[tuple[BagTarget, QueuedTiles]]


class EmbedPass:
    """Embeds the slides that any of several targets lacks; each tile is read once for all.

    Args:
        catalogue: The slides.
        targets: Encoders of one grid, each on as many devices, and their plans.
        batch_size: Tiles of a forward pass.
        threads: Threads that read tiles.

    Attributes:
        wait_s: Seconds in which a device had no tiles to work on.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        targets: Sequence[BagTarget],
        *,
        batch_size: int,
        threads: int,
    ) -> None:
        self.catalogue, self.targets = catalogue, targets
        self._batch_size, self._threads = batch_size, threads
        self.wait_s = 0.0
        self._forward_s = [0.0] * len(targets[0].replicas)
        self._lock = threading.RLock()  # of the targets' lists, the writes and the meter
        self._writes: deque[tuple[SlideJob, GrowingBag, Future[None]]] = deque()
        self._unsettled: set[GrowingBag] = set()
        self._n_read = self._n_refused = 0
        self._began = time.monotonic()

    @property
    def forward_s(self) -> float:
        """Seconds that the encoders took, over all devices."""
        return sum(self._forward_s)

    def run(self) -> None:
        """Embed them.

        Raises:
            BagError: If another run has put a bag of another kind there meanwhile.
            OSError: If the disk is full; the finished bags stand.
        """
        todo = self._todo()
        n_before = len(self.catalogue) - len(todo)
        try:
            with (
                meter("embed", total=len(self.catalogue), unit="slides", done=n_before) as shown,
                ThreadPoolExecutor(1, thread_name_prefix="anlage-bags") as self._writer,
            ):
                self._meter = shown
                self._embed(self._jobs(todo))
                if any(target.elsewhere for target in self.targets):
                    self._embed(self._jobs_once_more())
        finally:
            for bag in self._unsettled:  # of a run that ended by an error
                bag.discard()

    def _embed(self, jobs: Iterator[SlideJob]) -> None:
        """Embed slides, and see all their bags written."""
        reader = TileReadAhead(
            self.catalogue,
            self.targets[0].grid.spec,
            batch_size=self._batch_size,
            threads=self._threads,
            colour=self.targets[0].grid.colour,
        )
        with reader, ThreadPoolExecutor(1, thread_name_prefix="anlage-grid") as planner:
            batches = reader.batches(_one_ahead(jobs, planner))
            on_each_device(len(self.targets[0].replicas), batches, self._embed_on)
            self._settle(allowed=0)
        self.wait_s += reader.wait_s

    def _todo(self) -> list[str]:
        """Slides that any target lacks, in the catalogue's order where there is only one."""
        merged: dict[str, None] = {}
        for target in self.targets:
            merged |= target.plan.todo
        return list(merged)

    def _jobs(self, todo: Sequence[str]) -> Iterator[SlideJob]:
        """Slide after slide."""
        for slide_id in todo:
            wanting = [t for t in self.targets if slide_id in t.plan.todo]
            job = self._job(slide_id, wanting)
            if job is not None:
                yield job
            else:
                with self._lock:
                    self._meter.advance()

    def _jobs_once_more(self) -> Iterator[SlideJob]:
        """Those that another run had claimed, which may have ended since, or been killed."""
        for target in self.targets:
            again, target.elsewhere = target.elsewhere, []
            for slide_id in again:
                job = self._job(slide_id, [target])
                if job is not None:
                    job.shown = 1.0  # the meter has counted it
                    yield job

    def _job(self, slide_id: str, wanting: Sequence[BagTarget]) -> SlideJob | None:
        """The job of a slide, if any of its bags is for this run to make."""
        row = self.catalogue.row(slide_id)
        with self._lock:
            wanting = [target for target in wanting if target.begin(self.catalogue, row)]
        if not wanting:
            return None
        corners = tiles_of(self.catalogue, row, self.targets[0].grid.spec)
        bags = [target.growing_bag(row, len(corners)) for target in wanting]
        self._unsettled.update(bags)
        job = SlideJob(row, corners, bags, n_unsettled=len(bags))
        if len(corners) == 0:
            with self._lock:
                for bag in bags:
                    self._write(job, bag)
        return job

    def _embed_on(self, device: int, batches: Iterator[ReadBatch]) -> None:
        """Work off batches on one device, which is given the next before the last has come back."""
        waiting: tuple[ReadBatch, Queued] | None = None
        for batch in batches:
            queued = self._queue(device, batch)
            if waiting is not None:
                self._take(device, *waiting)
            waiting = batch, queued
        if waiting is not None:
            self._take(device, *waiting)

    def _queue(self, device: int, batch: ReadBatch) -> Queued:
        began = time.perf_counter()
        wanted = {bag.target for piece in batch.pieces for bag in piece.job.bags}
        queued = [
            (target, target.queue(device, batch.pixels_B3SS, batch_size=self._batch_size))
            for target in self.targets
            if target in wanted
        ]
        self._forward_s[device] += time.perf_counter() - began
        return queued

    def _take(self, device: int, batch: ReadBatch, queued: Queued) -> None:
        began = time.perf_counter()
        arrived = {target: [part.numpy() for part in each.arrived()] for target, each in queued}
        self._forward_s[device] += time.perf_counter() - began
        with self._lock:
            for piece in batch.pieces:
                job = piece.job
                for bag in job.bags:
                    self._put(bag, job, piece.rows, [p[piece.slots] for p in arrived[bag.target]])
                job.n_read += len(piece.rows)
                self._n_read += len(piece.rows)
                share = SHOWN_BEFORE_WRITTEN * job.n_read / len(job.corners)
                self._show(job, share if job.n_unsettled else 1.0)

    def _put(
        self,
        bag: GrowingBag,
        job: SlideJob,
        rows: np.ndarray[tuple[int], np.dtype[np.int64]],
        outputs: Sequence[np.ndarray[Any, np.dtype[Any]]],
    ) -> None:
        if bag.is_settled:
            return
        if job.reason is None:
            bag.put(rows, *outputs)
        reason = job.reason or bag.reason
        if reason is not None:
            self._end(job, bag, reason)
        elif bag.is_complete:
            self._write(job, bag)

    def _write(self, job: SlideJob, bag: GrowingBag) -> None:
        self._writes.append((job, bag, self._writer.submit(bag.target.write, job, bag)))
        self._settle(allowed=MAX_PENDING_WRITES)

    def _settle(self, *, allowed: int) -> None:
        """Wait until at most ``allowed`` bags are unwritten, and note what became of the others."""
        while len(self._writes) > allowed:
            job, bag, write = self._writes.popleft()
            try:
                write.result()
            except BagError as error:
                self._end(job, bag, error.message)
            else:
                self._end(job, bag, None)

    def _end(self, job: SlideJob, bag: GrowingBag, reason: str | None) -> None:
        bag.is_settled = True
        self._unsettled.discard(bag)
        job.n_unsettled -= 1
        self._n_refused += reason is not None
        bag.target.settle(job, bag, reason)
        if not job.n_unsettled:
            self._show(job, 1.0)

    def _show(self, job: SlideJob, share: float) -> None:
        """Tell the meter how much of a slide is done."""
        rate = self._n_read / max(time.monotonic() - self._began, 1e-9)
        refused = f", {self._n_refused} refused" if self._n_refused else ""
        newly = max(share - job.shown, 0.0)
        job.shown += newly
        self._meter.advance(newly, f"{rate:.0f} tiles/s{refused}, {job.row.slide_id}")


def _one_ahead(jobs: Iterator[SlideJob], pool: ThreadPoolExecutor) -> Iterator[SlideJob]:
    """Jobs of which the next is made while one is worked on: its mask and grid take a while."""
    coming = pool.submit(next, jobs, None)
    while (job := coming.result()) is not None:
        coming = pool.submit(next, jobs, None)
        yield job
