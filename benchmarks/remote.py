"""Random tiles of a slide behind HTTP with latency: our reader against tiffslide on fsspec.

Ours is one process: windows are started ``--depth`` ahead of two threads that decode them. The
peer is ``tiffslide_remote.py`` of the baselines folder, in one process and in eight, which was its
best number. Sides take turns in every round, each with tiles of its own, after one round that is
thrown away; the server (``range_server.py``) runs in a process of its own, waits before each answer
and counts requests and bytes. "scaled" is our default decoding, "full" does the peer's own work.

Usage, in the repository, with the folder that holds ``baselines/`` and ``tools/`` beside it:
    uv run --with tiffslide --with fsspec --with aiohttp benchmarks/remote.py SLIDE.svs
        [--shared ../shared] [--rounds 5] [--latency-ms 20] [--depth 48] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np

from anlage.slides.levels import Decode, TileWindow
from anlage.slides.reader import SlideReader, open_slide
from anlage.slides.regions import PendingTiles, start_tiles

TILE_PX, MPP = 256, 0.5
THREADS = 2
N_TILES = {"ours_scaled": 600, "ours_full": 600, "tiffslide_1": 40, "tiffslide_8": 200}
ONE, BEST = "tiffslide_1", "tiffslide_8"


def main() -> None:
    """Serve the slide, measure all sides, print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("slide", type=Path)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--latency-ms", type=float, default=20)
    parser.add_argument("--depth", type=int, default=48, help="windows in flight")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    # the baseline's modules import each other by their bare names, in spawned processes as well
    folder = str(arguments.shared.resolve() / "baselines")
    sys.path.insert(0, folder)
    os.environ["PYTHONPATH"] = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["ANLAGE_CACHE"] = cache
        figures = measure(
            arguments.slide.resolve(),
            rounds=arguments.rounds,
            latency_ms=arguments.latency_ms,
            depth=arguments.depth,
        )
    print(json.dumps(figures, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


def measure(path: Path, *, rounds: int, latency_ms: float, depth: int) -> dict[str, Any]:
    """Rates and their ratios, what a tile costs the server, and whether the pixels are right."""
    import openslide
    import tiffslide_remote as baseline
    from openslide_tiles import plan_window, tissue_corners

    with openslide.OpenSlide(path) as local:
        window = plan_window(local, tile_px=TILE_PX, mpp=MPP)
        corners = tissue_corners(local, window, (rounds + 1) * sum(N_TILES.values()))
    parts = _shares(corners, rounds)
    with baseline.serve(path.parent, latency_ms=latency_ms) as address:
        url = f"{address}/{path.name}"
        baseline.server_stats(address)
        start = time.perf_counter()
        slide = open_slide(url)
        opening = {"open_s": time.perf_counter() - start, **baseline.server_stats(address)}
        open_slide(url).close()
        reopening = baseline.server_stats(address)["requests"]
        sides: dict[str, Callable[[np.ndarray], int]] = {
            "ours_scaled": lambda share: read_ours(slide, share, decode="scaled", depth=depth),
            "ours_full": lambda share: read_ours(slide, share, decode="full", depth=depth),
        }
        with _workers(1, baseline, url) as one, _workers(8, baseline, url) as eight:
            for name, pool, n in ((ONE, one, 1), (BEST, eight, 8)):
                sides[name] = lambda share, pool=pool, n=n: sum(
                    pool.map(baseline.read_share, np.array_split(share, n), [window] * n)
                )
            rates, asked = _take_turns(sides, parts, lambda: baseline.server_stats(address))
        difference = _largest_difference(path, slide, corners[:16])
    return {
        "latency_ms": latency_ms,
        "depth": depth,
        "rounds": rounds,
        "tiles_per_s": rates,
        "ratio_to_one_process": {k: rates[k] / rates[ONE] for k in rates if k != ONE},
        "ratio_to_best": {k: rates[k] / rates[BEST] for k in rates if k != BEST},
        "mb_per_tile": {k: a["bytes"] / 1e6 / (rounds * N_TILES[k]) for k, a in asked.items()},
        "requests_per_tile": {k: a["requests"] / (rounds * N_TILES[k]) for k, a in asked.items()},
        "opening": opening,
        "requests_to_open_again": reopening,
        "largest_difference_to_local": difference,
    }


def read_ours(slide: SlideReader, corners_N2: np.ndarray, *, decode: Decode, depth: int) -> int:
    """Read tiles with ``depth`` of them under way; returns how many."""
    windows = deque(TileWindow(x, y, TILE_PX, MPP) for x, y in corners_N2.tolist())
    decoding: deque[Future[Sequence[Any]]] = deque()
    n_read = 0
    with ThreadPoolExecutor(THREADS) as threads:
        while windows or decoding:
            while windows and len(decoding) < depth:
                pending: PendingTiles = start_tiles(slide, [windows.popleft()], decode=decode)
                decoding.append(threads.submit(pending.read))
            (tile,) = decoding.popleft().result()
            if isinstance(tile, Exception):
                raise tile
            n_read += 1
    return n_read


def _shares(corners: np.ndarray, rounds: int) -> list[dict[str, np.ndarray]]:
    """Tiles of each side for each round, none twice."""
    cuts = np.cumsum(list(N_TILES.values()) * (rounds + 1))[:-1]
    pieces = iter(np.split(corners, cuts))
    return [{name: next(pieces) for name in N_TILES} for _ in range(rounds + 1)]


def _workers(n: int, baseline: ModuleType, url: str) -> ProcessPoolExecutor:
    pool = ProcessPoolExecutor(
        n, get_context("spawn"), initializer=baseline.open_here, initargs=(url, "default")
    )
    wait([pool.submit(time.sleep, 1.0) for _ in range(n)])  # until each has its handle
    return pool


def _take_turns(
    sides: dict[str, Callable[[np.ndarray], int]],
    parts: list[dict[str, np.ndarray]],
    count: Callable[[], dict[str, int]],
) -> tuple[dict[str, float], dict[str, dict[str, int]]]:
    """Median rate of each side, and what it asked of the server; the first round is a warm-up."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    asked: dict[str, dict[str, int]] = {name: {"bytes": 0, "requests": 0} for name in sides}
    for number, part in enumerate(parts):
        for name, read in sides.items():
            count()
            start = time.perf_counter()
            n_read = read(part[name])
            seconds, counted = time.perf_counter() - start, count()
            if number > 0:
                rates[name].append(n_read / seconds)
                for what in asked[name]:
                    asked[name][what] += counted[what]
    return {name: statistics.median(found) for name, found in rates.items()}, asked


def _largest_difference(path: Path, slide: SlideReader, corners: np.ndarray) -> int:
    """Between our tiles of the remote and of the local slide, 0 to 255."""
    largest = 0
    with open_slide(path) as local:
        for x, y in corners.tolist():
            window = TileWindow(x, y, TILE_PX, MPP)
            there, here = (start_tiles(s, [window]).read()[0] for s in (slide, local))
            largest = max(largest, int(np.abs(there.astype(int) - here.astype(int)).max()))
    return largest


if __name__ == "__main__":
    main()
