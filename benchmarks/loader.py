"""The whole loader, from slides to uint8 batches: one thread, two threads, two OpenSlide processes.

64 slides (links to the one given, or copies) are indexed into a temporary catalogue; ``TileStream``
then gives batches of 64 tiles of 256 px at 0.5 mpp. Modes: single tiles and regions of 4 or 16
tiles, decoded in full or scaled. The peer is ``openslide_tiles.py`` of the baselines folder, one
handle in each of two processes, which only reads its tiles. All sides take turns in every round; a
turn of ours begins with a fresh stream whose read-ahead is consumed before the clock starts. The
first round is thrown away; figures are medians of the others.

``data_wait`` is the share of time a consumer at ``--train-rate`` tiles/s waits for its batches.

Usage, in the repository, with the folder that holds ``baselines/`` beside it:
    uv run benchmarks/loader.py SLIDE.svs [--shared ../shared] [--rounds 5] [--slides 64]
        [--tiles 2048] [--train-rate 800] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2

from anlage.bench.decoding import native_work
from anlage.slides.catalogue import Catalogue
from anlage.slides.indexing.index import index_slides
from anlage.slides.levels import Decode
from anlage.tiles.sampling import TileSampler, sampler_from_catalogue
from anlage.tiles.stream import TileStream

TILE_PX, MPP, BATCH, PREFETCH = 256, 0.5, 64, 3
MODES: dict[str, tuple[Decode, int]] = {
    "tile full": ("full", 1),
    "tile scaled": ("scaled", 1),
    "region k=4 full": ("full", 4),
    "region k=4 scaled": ("scaled", 4),
    "region k=16 full": ("full", 16),
    "region k=16 scaled": ("scaled", 16),
}
PEER = "openslide, 2 processes"


def main() -> None:
    """Index the slides, measure all sides, print a table and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("slide", type=Path)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slides", type=int, default=64)
    parser.add_argument("--tiles", type=int, default=2048, help="a turn, in whole windows")
    parser.add_argument("--train-rate", type=float, default=800.0, help="tiles/s, for data_wait")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    folder = str(arguments.shared.resolve() / "baselines")
    sys.path.insert(0, folder)
    os.environ["PYTHONPATH"] = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as temporary:
        catalogue = make_catalogue(
            arguments.slide.resolve(), Path(temporary), n_slides=arguments.slides
        )
        figures = measure(
            catalogue,
            arguments.slide.resolve(),
            rounds=arguments.rounds,
            n_tiles=arguments.tiles,
            train_rate=arguments.train_rate,
        )
    show(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


def make_catalogue(slide: Path, folder: Path, *, n_slides: int) -> Catalogue:
    """A catalogue of that many slides, all with the bytes of one."""
    slides = folder / "slides"
    slides.mkdir()
    for number in range(n_slides):
        target = slides / f"{number:03d}{slide.suffix}"
        try:
            os.link(slide, target)
        except OSError:  # another file system
            shutil.copyfile(slide, target)
    result = index_slides([slides], folder / "slides.parquet")
    assert result.catalogue is not None, result.refused
    return result.catalogue


def measure(
    catalogue: Catalogue, slide: Path, *, rounds: int, n_tiles: int, train_rate: float
) -> dict[str, Any]:
    """Tiles/s of all sides, their ratios, native tiles decoded a tile, and waiting."""
    turns: dict[str, Callable[[], float]] = {}
    native, samplers = {}, {}
    for name, (decode, k) in MODES.items():
        samplers[name] = sampler_from_catalogue(
            catalogue,
            seed=0,
            size_px=TILE_PX,
            batch_size=BATCH,
            magnifications={MPP: 1.0},
            min_tissue=0.25,
            tiles_per_region=k,
        )
        native[name] = native_tiles(catalogue, samplers[name], decode)
        for threads in (1, 2):
            turns[f"{name}, {threads} threads"] = partial(
                ours, catalogue, samplers[name], decode=decode, threads=threads, n_tiles=n_tiles
            )
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        turns[PEER] = partial(peer, pool, slide, n_tiles=min(n_tiles, 1024))
        rates: dict[str, list[float]] = {name: [] for name in turns}
        for number in range(rounds + 1):
            for name, turn in turns.items():
                rate = turn()
                if number:
                    rates[name].append(rate)
    median = {name: round(statistics.median(values), 1) for name, values in rates.items()}
    waits = {
        name: round(
            data_wait(
                catalogue, sampler, decode=MODES[name][0], train_rate=train_rate, n_tiles=n_tiles
            ),
            4,
        )
        for name, sampler in samplers.items()
    }
    return {
        "tiles_per_s": median,
        "two_threads_over_one": {
            name: round(median[f"{name}, 2 threads"] / median[f"{name}, 1 threads"], 2)
            for name in MODES
        },
        "two_threads_over_openslide": {
            name: round(median[f"{name}, 2 threads"] / median[PEER], 2) for name in MODES
        },
        "native_tiles_per_tile": native,
        "data_wait": waits,
        "train_rate": train_rate,
        "rounds": {name: [round(value, 1) for value in values] for name, values in rates.items()},
        "batch": BATCH,
        "slides": len(catalogue),
    }


def ours(
    catalogue: Catalogue, sampler: TileSampler, *, decode: Decode, threads: int, n_tiles: int
) -> float:
    """Tiles/s of a stream over whole windows, after what it read ahead is used up."""
    n_steps = sampler.steps_per_window
    ahead = n_steps + PREFETCH
    measured = max(n_tiles // (n_steps * BATCH), 1) * n_steps
    with TileStream(
        catalogue, sampler, threads=threads, prefetch=PREFETCH, decode=decode
    ) as stream:
        for step, _ in enumerate(stream.batches(0, 2 * ahead + measured + n_steps)):
            if step == ahead:
                began = time.perf_counter()
            if step == ahead + measured:
                return measured * BATCH / (time.perf_counter() - began)
    raise AssertionError


def data_wait(
    catalogue: Catalogue,
    sampler: TileSampler,
    *,
    decode: Decode,
    train_rate: float,
    n_tiles: int,
) -> float:
    """Share of its time that a consumer of ``train_rate`` tiles/s waits, with two threads."""
    n_steps = n_tiles // BATCH
    warm = sampler.steps_per_window
    with TileStream(catalogue, sampler, threads=2, prefetch=PREFETCH, decode=decode) as stream:
        for step, _ in enumerate(stream.batches(0, warm + n_steps)):
            if step == warm:
                began, waited = time.perf_counter(), stream.wait_s
            time.sleep(BATCH / train_rate)
        return (stream.wait_s - waited) / (time.perf_counter() - began)


def peer(pool: ProcessPoolExecutor, slide: Path, *, n_tiles: int) -> float:
    """Tiles/s of two processes with OpenSlide."""
    import openslide
    from openslide_tiles import plan_window, read_tiles, run_parallel, tissue_corners

    with openslide.OpenSlide(slide) as opened:
        window = plan_window(opened, tile_px=TILE_PX, mpp=MPP)
        corners = tissue_corners(opened, window, n_tiles, seed=time.time_ns() % 2**32)
    return float(
        run_parallel(partial(read_tiles, path=str(slide), window=window), corners, pool, 2)
    )


def native_tiles(catalogue: Catalogue, sampler: TileSampler, decode: Decode) -> float:
    """Native tiles decoded for each tile, over the regions of one window."""
    n_native = n_tiles = 0
    for region in range(64):
        requests = sampler.draw_region(region)
        with catalogue.open_slide(requests[0].slide_id) as slide:
            windows = [window for request in requests for window in request.views]
            work = native_work(slide, windows, decode=decode)
        assert work is not None
        n_native, n_tiles = n_native + work.n_native, n_tiles + len(requests)
    return round(n_native / n_tiles, 2)


def show(figures: dict[str, Any]) -> None:
    """The figures as a table."""
    rates = figures["tiles_per_s"]
    heads = ("1 thread", "2 threads", "2 over 1", "over 2 OpenSlide", "native/tile", "data-wait")
    print(f"{'tiles/s':20s}" + "".join(f"{head:>18s}" for head in heads))
    for name in MODES:
        cells = (
            *(f"{rates[f'{name}, {threads} threads']:.0f}" for threads in (1, 2)),
            *(f"{figures[key][name]:.2f}x" for key in figures if key.startswith("two_threads")),
            f"{figures['native_tiles_per_tile'][name]:.2f}",
            f"{figures['data_wait'][name]:.1%}",
        )
        print(f"{name:20s}" + "".join(f"{cell:>18s}" for cell in cells))
    print(f"{PEER}: {rates[PEER]:.0f} tiles/s; a consumer of {figures['train_rate']:g} tiles/s")


if __name__ == "__main__":
    main()
