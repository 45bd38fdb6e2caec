"""Tiles cut from regions of whole native tiles, one thread: ours beside OpenSlide tile by tile.

A region of A x A native tiles is decoded once and gives K random tiles: 4 x 4 with 4, 8 x 8 with
16. OpenSlide reads random tiles (``times_random``: what such a loader does without regions), the
tiles of the regions one by one (``times_same_tiles``), and each region in one read that is cut
afterwards. All sides resample exactly, take turns in every round, and are compared first.

Usage, in the repository, with the folder that holds the baselines beside it:
    uv run benchmarks/regions.py SLIDE [SLIDE ...] [--mpp 0.5] [--tile-px 256] [-n 200]
        [--rounds 5] [--baselines ../shared/baselines] [--json FILE]
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openslide
from numpy.typing import NDArray
from turns import Rate, take_turns

from anlage.slides.levels import Decode, TileWindow, choose_source
from anlage.slides.reader import SlideReader, open_slide
from anlage.slides.regions import read_tiles

RANDOM = "openslide, random tiles"
SETTINGS = ((4, 4), (8, 16))  # native tiles across, tiles cut from them
Pixels = NDArray[np.uint8]


def main() -> None:
    """Measure every slide, print a table of each and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("slides", nargs="+", type=Path)
    parser.add_argument("--mpp", type=float, default=0.5)
    parser.add_argument("--tile-px", type=int, default=256)
    parser.add_argument("-n", type=int, default=200, help="tiles a round, about")
    parser.add_argument("--rounds", type=int, default=5, help="measured, after one that is not")
    parser.add_argument("--baselines", type=Path, default=Path("../shared/baselines"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    cv2.setNumThreads(1)
    sys.path.insert(0, str(given.baselines))
    figures = []
    for path in given.slides:
        found = measure(path, mpp=given.mpp, tile_px=given.tile_px, n=given.n, rounds=given.rounds)
        figures.append(found)
        print_table(found)
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")


def measure(path: Path, *, mpp: float, tile_px: int, n: int, rounds: int) -> dict[str, Any]:
    """Rates of every side for both settings on one slide, beside OpenSlide tile by tile."""
    baseline = importlib.import_module("openslide_tiles")
    peer = openslide.OpenSlide(str(path))
    window = baseline.plan_window(peer, tile_px=tile_px, mpp=mpp)
    anchors = baseline.tissue_corners(peer, window, n).tolist()
    scattered = [[TileWindow(x, y, tile_px, mpp)] for x, y in anchors]
    sides: dict[str, tuple[Callable[[], Any], int]] = {}
    differences: dict[str, float] = {}
    with open_slide(path) as slide:
        for across, k in SETTINGS:
            chosen = anchors[: max(n // k, 1)]
            regions = [
                region(slide, anchor, i, across=across, k=k, tile_px=tile_px, mpp=mpp)
                for i, anchor in enumerate(chosen)
            ]
            for name, read in readers(slide, peer, window, baseline).items():
                label = f"{name} {across}x{across}->{k}"
                sides[label] = (_each(read, regions), k * len(regions))
                expected = read_tiles(slide, regions[0], decode="full")
                differences[label] = _difference(read(regions[0]), expected)
        alone = readers(slide, peer, window, baseline)["openslide per tile"]
        sides[RANDOM] = (_each(alone, scattered), n)
        rates = take_turns(sides, rounds=rounds)
    return {
        "slide": path.name,
        "mpp": mpp,
        "tile_px": tile_px,
        "sides": {
            name: {
                "tiles_per_s": round(rate.per_s, 1),
                "cpu_ms_per_tile": round(rate.cpu_ms, 3),
                **_ratios(rate, rates[RANDOM], "random"),
                **_ratios(rate, rates.get(_same_tiles(name), rates[RANDOM]), "same_tiles"),
                "mean_difference": round(differences.get(name, 0.0), 3),
            }
            for name, rate in rates.items()
        },
    }


def _ratios(rate: Rate, openslide_rate: Rate, kind: str) -> dict[str, float]:
    return {
        f"times_{kind}": round(rate.per_s / openslide_rate.per_s, 2),
        f"times_{kind}_cpu": round(openslide_rate.cpu_ms / rate.cpu_ms, 2),
    }


def _same_tiles(name: str) -> str:
    """The side on which OpenSlide reads one by one the tiles that this side reads."""
    return f"openslide per tile {name.rsplit(' ', 1)[1]}"


def region(
    slide: SlideReader,
    anchor: Sequence[int],
    number: int,
    *,
    across: int,
    k: int,
    tile_px: int,
    mpp: float,
) -> list[TileWindow]:
    """K tiles within ``across`` native tiles each way, on their grid, around an anchor.

    Corners are multiples of 8 level-0 pixels, so that every side begins at the same pixel.
    """
    source = choose_source(slide, size_px=tile_px, mpp=mpp, decode="full")
    native = slide.native_tile(source.level)
    if native is None:
        msg = f"regions needs the native tile size of {slide.path}; its reader does not say it."
        raise SystemExit(msg)
    downsample = slide.levels[source.level].downsample
    draw = np.random.default_rng(number)
    corner = []
    for place, edge, extent in zip(anchor, native, slide.size, strict=True):
        step = edge * downsample
        first = int(min(place // step, max(extent // step - across, 0)) * step)
        spare = int(across * step - source.edge_px * downsample)
        corner.append(first + draw.integers(0, spare + 1, k) // 8 * 8)
    return [TileWindow(int(x), int(y), tile_px, mpp) for x, y in zip(*corner, strict=True)]


def readers(
    slide: SlideReader,
    peer: Any,  # noqa: ANN401
    window: Any,  # noqa: ANN401
    baseline: Any,  # noqa: ANN401
) -> dict[str, Callable[[list[TileWindow]], list[Any]]]:
    """Every way to read the tiles of one region."""
    downsample = peer.level_downsamples[window.level]

    def whole(windows: list[TileWindow]) -> list[Pixels]:
        """One read of the rectangle around all, by the baseline's own function, cut afterwards."""
        left, top = min(w.x for w in windows), min(w.y for w in windows)
        right, bottom = max(w.x for w in windows), max(w.y for w in windows)
        edge = round(max(right - left, bottom - top) / downsample) + window.read_px
        around = baseline.Window(window.level, edge, edge, 0.0)
        pixels, size = baseline.read_tile(peer, left, top, around), (window.tile_px,) * 2
        tiles = []
        for w in windows:
            x, y = round((w.x - left) / downsample), round((w.y - top) / downsample)
            part = pixels[y : y + window.read_px, x : x + window.read_px]
            tiles.append(np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_AREA)))
        return tiles

    def ours(decode: Decode) -> Callable[[list[TileWindow]], list[Any]]:
        return lambda windows: read_tiles(slide, windows, decode=decode)

    return {
        "openslide per tile": lambda windows: [
            baseline.read_tile(peer, w.x, w.y, window) for w in windows
        ],
        "openslide per region": whole,
        "ours full": ours("full"),
        "ours scaled": ours("scaled"),
    }


def _each(
    read: Callable[[list[TileWindow]], list[Any]], regions: list[list[TileWindow]]
) -> Callable[[], None]:
    def run() -> None:
        for windows in regions:
            read(windows)

    return run


def _difference(shown: Sequence[Any], expected: Sequence[Any]) -> float:
    return float(np.abs(np.array(shown, np.int64) - np.array(expected, np.int64)).mean())


def print_table(found: dict[str, Any]) -> None:
    """One row a side, one column a figure."""
    rows = found["sides"]
    columns = list(next(iter(rows.values())))
    print(f"\n{found['slide']}: {found['tile_px']} px at {found['mpp']} mpp")
    print(f"{'':30}" + "".join(f"{column:>22}" for column in columns))
    for name, row in rows.items():
        print(f"{name:30}" + "".join(f"{row[column]:>22}" for column in columns))


if __name__ == "__main__":
    main()
