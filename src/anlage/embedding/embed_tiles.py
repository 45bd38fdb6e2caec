"""Embed every tissue tile of every slide of a catalogue: one bag a slide, resumable."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anlage.bags.store import Bag, write_bag
from anlage.embedding.embed_record import write_embed_record
from anlage.embedding.read_ahead import ReadBatch, TileReadAhead
from anlage.embedding.slide_plan import (
    Plan,
    SlideJob,
    bag_attributes,
    bag_path,
    plan_slides,
    tiles_of,
)
from anlage.encoders.embed_batch import embed_batches
from anlage.encoders.folder import load_encoder
from anlage.encoders.tile_encoder import Precision, TileEncoder
from anlage.errors import BagError
from anlage.progress import Meter, meter
from anlage.provenance import git_commit, machine, versions
from anlage.slides.catalogue import Catalogue
from anlage.slides.colour import Colour
from anlage.slides.indexing.found_slide import Refused
from anlage.tiles.spec import TileSpec

LOGGER = logging.getLogger(__name__)
STALE_AFTER_S = 3600.0
MAX_PENDING_WRITES = 2


@dataclass(frozen=True)
class EmbedResult:
    """What became of the slides; each is in exactly one list.

    Attributes:
        output: Folder of the bags.
        done: Slides embedded by this run.
        skipped: Slides whose bag was there.
        empty: Slides without one tile of enough tissue; their bag holds 0 tiles.
        refused: Slides that could not be read or embedded, with the reason; they have no bag.
        n_tiles: Tiles embedded by this run.
        wait_s: Seconds the encoder waited for tiles.
    """

    output: Path
    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    n_tiles: int = 0
    wait_s: float = 0.0


def embed_tiles(
    encoder: TileEncoder | str | Path,
    catalogue: Catalogue | str | Path,
    output: str | Path,
    *,
    stride_px: int | None = None,
    min_tissue: float = 0.25,
    batch_size: int = 64,
    threads: int = 2,
    device: str | torch.device = "auto",
    precision: Precision = "auto",
    colour: Colour | None = None,
) -> EmbedResult:
    """Embed all tiles with enough tissue, at the encoder's mpp and tile size.

    Writes ``<slide_id>.h5`` for each slide, whole, as soon as it is complete, and
    ``embedding.json`` at the end. A bag that is already there is kept if it is what this run
    would make, so the same command goes on after a stop of any kind; the record then tells of
    the runs before it too, and stays as it is where nothing was to do.

    Args:
        encoder: An encoder, or the folder of one.
        catalogue: The slides, or the catalogue's file.
        output: Folder of the bags.
        stride_px: Step of the grid, pixels at the encoder's mpp; None for its tile edge.
        min_tissue: Smallest tissue fraction of a tile, 0 to 1.
        batch_size: Tiles of a forward pass; no embedding depends on it.
        threads: Threads that read tiles.
        device: Where to run an encoder given as a folder.
        precision: Its arithmetic; see ``TileEncoder``.
        colour: "srgb" brings each slide's tiles into sRGB by its own profile, where it has one;
            "stored" leaves them. None for what the encoder was trained on.

    Returns:
        Which slides are done, were skipped, are empty, or were refused and why.

    Raises:
        BagError: If ``output`` holds a bag of another encoder or grid, or a damaged one.
        EncoderError: If the encoder folder is not whole.
        CatalogueError: If the catalogue or its masks are unusable.
        OSError: If the disk is full; the finished bags stand.
        ValueError: If a setting is out of range.
    """
    if batch_size < 1 or threads < 1:
        msg = (
            "embed_tiles: needs batch_size and threads of at least 1; "
            f"got {batch_size} and {threads}. 64 and 2 suit most."
        )
        raise ValueError(msg)
    if not isinstance(encoder, TileEncoder):
        encoder = load_encoder(encoder, device=device, precision=precision)
    if not isinstance(catalogue, Catalogue):
        catalogue = Catalogue.open(catalogue)
    spec = TileSpec(
        size_px=encoder.config.tile_px,
        mpp=encoder.config.mpp,
        stride_px=encoder.config.tile_px if stride_px is None else stride_px,
        min_tissue=min_tissue,
    )
    colour = _colour(colour, encoder)
    output = Path(output)
    began, started = time.monotonic(), datetime.now(UTC)
    _clear_stale_parts(output)
    plan = plan_slides(catalogue, output, encoder=encoder, spec=spec, colour=colour)
    run = _Run(encoder, catalogue, spec, output, colour=colour)
    result = run.embed(plan, batch_size=batch_size, threads=threads)
    record = _record(result, encoder, catalogue, spec) | {
        "colour": colour,
        "batch_size": batch_size,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - began, 2),
    }
    write_embed_record(output, record, had_work=bool(plan.todo))
    return result


class _Run:
    """One pass over the slides of a plan."""

    def __init__(
        self,
        encoder: TileEncoder,
        catalogue: Catalogue,
        spec: TileSpec,
        output: Path,
        *,
        colour: Colour,
    ) -> None:
        self.encoder, self.catalogue, self.spec, self.output = encoder, catalogue, spec, output
        self.colour = colour
        self.done: list[str] = []
        self.empty: list[str] = []
        self.refused: list[Refused] = []
        self.n_tiles = 0
        self._writes: deque[tuple[SlideJob, Future[None]]] = deque()
        self._told: set[str] = set()

    def embed(self, plan: Plan, *, batch_size: int, threads: int) -> EmbedResult:
        self.refused += plan.refused
        n_before = len(plan.skipped) + len(plan.refused)
        total = len(plan.todo) + n_before
        reader = TileReadAhead(
            self.catalogue,
            self.spec,
            batch_size=batch_size,
            threads=threads,
            colour=self.colour,
        )
        with (
            meter("embed", total=total, unit="slides", done=n_before) as progress,
            ThreadPoolExecutor(1, thread_name_prefix="anlage-bags") as writer,
            reader,
        ):
            in_flight: deque[ReadBatch] = deque()

            def pixels() -> Iterator[torch.Tensor]:
                for batch in reader.batches(self._jobs(plan, writer, progress)):
                    in_flight.append(batch)
                    yield batch.pixels_B3SS

            for embedding in embed_batches(self.encoder, pixels(), batch_size=batch_size):
                batch = in_flight.popleft()
                self._take(batch, embedding.numpy(), writer, progress)
            self._settle(progress, allowed=0)
        return EmbedResult(
            output=self.output,
            done=self.done,
            skipped=plan.skipped,
            empty=self.empty,
            refused=self.refused,
            n_tiles=self.n_tiles,
            wait_s=round(reader.wait_s, 2),
        )

    def _jobs(self, plan: Plan, writer: ThreadPoolExecutor, progress: Meter) -> Iterator[SlideJob]:
        for row in map(self.catalogue.row, plan.todo):
            corners = tiles_of(self.catalogue, row, self.spec)
            features = np.empty((len(corners), self.encoder.width), np.float32)
            job = SlideJob(row, corners, features)
            if len(corners) == 0:
                self._write(job, writer, progress)
            yield job

    def _take(
        self,
        batch: ReadBatch,
        embedding: np.ndarray[Any, np.dtype[np.float32]],
        writer: ThreadPoolExecutor,
        progress: Meter,
    ) -> None:
        for piece in batch.pieces:
            job = piece.job
            if job.reason:
                self._refuse(job, job.reason, progress)
                continue
            job.features[piece.rows] = embedding[piece.slots]
            job.n_embedded += len(piece.rows)
            progress.advance(0, f"{job.row.slide_id} {job.n_embedded}/{len(job.corners)} tiles")
            if job.n_embedded == len(job.corners):
                self._write(job, writer, progress)

    def _write(self, job: SlideJob, writer: ThreadPoolExecutor, progress: Meter) -> None:
        attributes = bag_attributes(
            job.row, self.encoder, self.spec, colour=self.colour, icc_profile=job.icc_profile
        )
        bag = Bag(job.row.slide_id, job.features, job.corners, attributes)
        path = bag_path(self.output, job.row.slide_id)
        self._writes.append((job, writer.submit(write_bag, path, bag)))
        self._settle(progress, allowed=MAX_PENDING_WRITES)

    def _settle(self, progress: Meter, *, allowed: int) -> None:
        """Wait until at most ``allowed`` bags are unwritten, and note what became of the others."""
        while len(self._writes) > allowed:
            job, write = self._writes.popleft()
            try:
                write.result()
            except BagError as error:
                self._refuse(job, error.message, progress)
                continue
            (self.done if len(job.corners) else self.empty).append(job.row.slide_id)
            self.n_tiles += len(job.corners)
            progress.advance()

    def _refuse(self, job: SlideJob, reason: str, progress: Meter) -> None:
        if job.row.slide_id in self._told:
            return
        self._told.add(job.row.slide_id)
        self.refused.append(Refused(job.row.uri, reason))
        LOGGER.warning("%s: no bag: %s", job.row.uri, reason)
        progress.advance()


def _colour(asked: Colour | None, encoder: TileEncoder) -> Colour:
    own = encoder.config.colour
    if asked is not None and asked != own:
        LOGGER.warning("tiles are read in %s colours; the encoder was trained on %s", asked, own)
    return asked or own


def _record(
    result: EmbedResult, encoder: TileEncoder, catalogue: Catalogue, spec: TileSpec
) -> dict[str, Any]:
    """The run's provenance: what was embedded, by what, with what, where."""
    return {
        "format": "embedding/1",
        "encoder_fingerprint": encoder.fingerprint,
        "encoder": encoder.config.model_dump(mode="json"),
        "catalogue": catalogue.path.name,
        "catalogue_fingerprint": catalogue.fingerprint,
        "tiles": asdict(spec),
        "precision": encoder.precision,
        "device": encoder.device.type,
        "done": result.done,
        "skipped": result.skipped,
        "empty": result.empty,
        "refused": [{"uri": slide.uri, "reason": slide.reason} for slide in result.refused],
        "n_tiles": result.n_tiles,
        "wait_s": result.wait_s,
        "versions": versions(),
        "commit": git_commit(),
        "machine": machine(),
    }


def _clear_stale_parts(output: Path) -> None:
    """Remove what a killed run left half-written, but not what another run is writing now."""
    for part in output.glob(".*.h5.*.part"):
        if time.time() - part.stat().st_mtime > STALE_AFTER_S:
            part.unlink(missing_ok=True)
