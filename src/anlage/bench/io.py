"""How fast tiles come from slides on this machine, beside what the decoder alone could do."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from anlage.bench.decoding import NativeWork, native_work
from anlage.bench.io_report import IoReport, IoSettings, Limit, Wait
from anlage.errors import CatalogueError, SlideError, TrainingError
from anlage.slides.catalogue import Catalogue
from anlage.slides.indexing.discovery import find_slides
from anlage.slides.indexing.found_slide import Refused
from anlage.slides.indexing.index import index_slides
from anlage.slides.levels import TileWindow
from anlage.slides.regions import read_tiles
from anlage.tiles.handles import SlideHandles
from anlage.tiles.sampling import TileSampler, sampler_from_catalogue
from anlage.tiles.stream import TileStream

BATCH_SIZE = 64
MOST_SLIDES = 64  # to index before measuring; evenly spaced among those that were named
SEED, MIN_TISSUE = 0, 0.25


@dataclass(slots=True, eq=False)
class _Region:
    """Tiles that are decoded together, what decoding them takes, and how long it took."""

    slide_id: str
    windows: list[TileWindow]
    native: NativeWork | None = None
    n_lost: int = 0


def measure_io(slides: Sequence[str], settings: IoSettings) -> IoReport:
    """Read tiles as training does, and decode what they are made of without anything else.

    The tiles are those that a training run with this resolution would draw. One thread reads
    them, region by region, in turns with the bare decoder on the same native tiles from memory;
    the medians of the rounds are told. Then the whole loader makes batches, as fast as it can and
    for a consumer of the rate asked for.

    Args:
        slides: A catalogue (``.parquet``), or files, folders, globs and URLs; of more than 64
            slides that are no catalogue, 64 are taken.
        settings: What to read, and how.

    Raises:
        CatalogueError: If the catalogue is unusable, or no slide is.
        TrainingError: If no slide has a tile of enough tissue.
    """
    with _catalogue(slides) as (catalogue, refused):
        try:
            sampler = _sampler(catalogue, settings)
        except TrainingError as error:  # its path may be that of a folder that is gone by now
            raise TrainingError(", ".join(slides), error.message) from error
        handles = SlideHandles(catalogue.open_slide)
        try:
            report = _measure_reading(sampler, handles, settings)
        finally:
            handles.close()
        report.loader_tiles_per_s = _run_loader(catalogue, sampler, settings).tiles_per_s
        if settings.rate is not None:
            report.wait = _run_loader(catalogue, sampler, settings, rate=settings.rate)
        report.refused = [(slide.uri, slide.reason) for slide in refused]
    return report


@contextmanager
def _catalogue(slides: Sequence[str]) -> Iterator[tuple[Catalogue, Sequence[Refused]]]:
    if len(slides) == 1 and Path(slides[0]).suffix == ".parquet":
        yield Catalogue.open(Path(slides[0])), ()
        return
    found, refused = find_slides(slides)
    n_chosen = min(len(found), MOST_SLIDES)
    chosen = [found[len(found) * k // n_chosen] for k in range(n_chosen)]
    with TemporaryDirectory(prefix="anlage-bench-") as folder:
        if chosen:
            names = [slide.location for slide in chosen]
            result = index_slides(names, Path(folder) / "slides.parquet")
            refused = [*refused, *result.refused]
            if result.catalogue is not None:
                yield result.catalogue, refused
                return
        told = "; ".join(f"{slide.uri}: {slide.reason}" for slide in refused[:3])
        where = ", ".join(slides)
        raise CatalogueError(where, f"needs a usable slide; got none ({told or 'none found'}).")


def _sampler(catalogue: Catalogue, settings: IoSettings) -> TileSampler:
    return sampler_from_catalogue(
        catalogue,
        seed=SEED,
        size_px=settings.tile_px,
        batch_size=BATCH_SIZE,
        magnifications={settings.mpp: 1.0},
        min_tissue=MIN_TISSUE,
        tiles_per_region=settings.per_region,
    )


def _measure_reading(sampler: TileSampler, handles: SlideHandles, settings: IoSettings) -> IoReport:
    regions = _regions(sampler, settings.n)
    readers = Counter(_prepare(region, handles, settings) for region in regions)
    n_tiles = sum(len(region.windows) for region in regions)
    native = [region for region in regions if region.native is not None]
    wall_s, cpu_s, native_s, alone_s = [], [], [], []
    for _ in range(settings.rounds):
        began, began_cpu = time.perf_counter(), time.process_time()
        spent = [_read(region, handles, settings) for region in regions]
        wall_s.append(time.perf_counter() - began)
        cpu_s.append(time.process_time() - began_cpu)
        native_s.append(
            sum(s for region, s in zip(regions, spent, strict=True) if region.native is not None)
        )
        alone_s.append(_decode_alone([region.native for region in native if region.native]))
    return IoReport(
        settings=settings,
        n_slides=len({region.slide_id for region in regions}),
        n_tiles=n_tiles,
        n_lost=sum(region.n_lost for region in regions) // settings.rounds,
        readers=dict(readers),
        tiles_per_s=n_tiles / median(wall_s),
        tiles_per_cpu_s=n_tiles / median(cpu_s),
        limit=_limit(native, read_s=median(native_s), alone_s=median(alone_s)),
    )


def _regions(sampler: TileSampler, n: int) -> list[_Region]:
    regions: list[_Region] = []
    left, number = n, 0
    while left > 0:
        requests = sampler.draw_region(number)[:left]
        regions.append(_Region(requests[0].slide_id, [r.views[0] for r in requests]))
        left, number = left - len(requests), number + 1
    return regions


def _prepare(region: _Region, handles: SlideHandles, settings: IoSettings) -> str:
    """Fetch the native tiles into memory, and with them into the system's cache."""
    try:
        with handles.borrow(region.slide_id) as slide:
            region.native = native_work(slide, region.windows, decode=settings.decode)
            return slide.reader
    except SlideError:
        return "none"  # its tiles are lost, and counted when they are read


def _read(region: _Region, handles: SlideHandles, settings: IoSettings) -> float:
    """Seconds of processor time, that of threads which fetch or resample among it."""
    began = time.process_time()
    try:
        with handles.borrow(region.slide_id) as slide:
            tiles = read_tiles(slide, region.windows, decode=settings.decode)
        region.n_lost += sum(isinstance(tile, SlideError) for tile in tiles)
    except SlideError:
        region.n_lost += len(region.windows)
    return time.process_time() - began


def _decode_alone(work: Sequence[NativeWork]) -> float:
    began = time.process_time()
    for each in work:
        each.decode()
    return time.process_time() - began


def _limit(native: Sequence[_Region], *, read_s: float, alone_s: float) -> Limit | None:
    work = [region.native for region in native if region.native is not None]
    n_tiles = sum(len(region.windows) for region in native)
    if not work or alone_s <= 0 or read_s <= 0:
        return None
    return Limit(
        decoders=sorted({each.decoder for each in work}),
        n_tiles=n_tiles,
        tiles_per_cpu_s=n_tiles / alone_s,
        share_reached=alone_s / read_s,
        native_tiles_per_tile=sum(each.n_native for each in work) / n_tiles,
        bytes_per_tile=sum(each.n_bytes for each in work) / n_tiles,
    )


def _run_loader(
    catalogue: Catalogue,
    sampler: TileSampler,
    settings: IoSettings,
    *,
    rate: float | None = None,
) -> Wait:
    """Batches of whole windows for a consumer of this rate; None: one that takes what it gets."""
    n_steps = ceil(settings.n / BATCH_SIZE / sampler.steps_per_window) * sampler.steps_per_window
    pause_s = 0.0 if rate is None else BATCH_SIZE / rate
    with TileStream(catalogue, sampler, threads=settings.threads, decode=settings.decode) as stream:
        began = time.perf_counter()
        first_s = 0.0
        for _ in stream.batches(0, n_steps):
            first_s = first_s or stream.wait_s
            time.sleep(pause_s)
        took_s = time.perf_counter() - began
        return Wait(
            rate=rate,
            first_batch_s=first_s,
            share=(stream.wait_s - first_s) / (took_s - first_s),
            tiles_per_s=n_steps * BATCH_SIZE / took_s,
        )
