"""Random tiles of a slide at an exact resolution, one thread: ours beside OpenSlide and the limit.

Every side reads the same corners and gives tiles of the same size and resolution. The sides take
turns in every round; figures are medians of the rounds after one that is thrown away. The limit
is simplejpeg on the native tiles that the windows touch, already in memory, into one buffer. What
each side shows is compared with ours before anything is timed. tiffslide and cucim take part
where they can be imported.

Usage, in the repository, with the folder that holds the baselines beside it:
    uv run benchmarks/readers.py SLIDE [SLIDE ...] [--mpp 0.5] [--tile-px 256] [-n 200]
        [--rounds 5] [--baselines ../shared/baselines] [--json FILE]
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openslide
from numpy.typing import NDArray
from turns import Rate, take_turns

from anlage.slides.levels import read_tile
from anlage.slides.reader import SlideReader, open_slide

ReadTile = Callable[[int, int], NDArray[np.uint8]]
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the resolution that was asked for


def main() -> None:
    """Measure every slide, print a table of each and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("slides", nargs="+", type=Path)
    parser.add_argument("--mpp", type=float, default=0.5)
    parser.add_argument("--tile-px", type=int, default=256)
    parser.add_argument("-n", type=int, default=200, help="tiles a round")
    parser.add_argument("--rounds", type=int, default=5, help="measured, after one that is not")
    parser.add_argument("--baselines", type=Path, default=Path("../shared/baselines"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    cv2.setNumThreads(1)
    sys.path.insert(0, str(given.baselines))
    figures = []
    for path in given.slides:
        if openslide.PROPERTY_NAME_MPP_X not in openslide.OpenSlide(str(path)).properties:
            print(f"\n{path.name}: says no resolution, without which OpenSlide has no window")
            continue
        found = measure(path, mpp=given.mpp, tile_px=given.tile_px, n=given.n, rounds=given.rounds)
        figures.append(found)
        print_table(found)
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")


def measure(path: Path, *, mpp: float, tile_px: int, n: int, rounds: int) -> dict[str, Any]:
    """Rates of every side on one slide, what it shows, and its share of the limit."""
    baseline = importlib.import_module("openslide_tiles")
    peer = openslide.OpenSlide(str(path))
    window = baseline.plan_window(peer, tile_px=tile_px, mpp=mpp)
    corners = baseline.tissue_corners(peer, window, n).tolist()
    # Where our reduced levels, too, begin at the very pixel, not up to half a pixel beside it.
    aligned = [[x // 8 * 8, y // 8 * 8] for x, y in corners[:24]]
    with open_slide(path) as slide:
        reads = {
            "openslide": lambda x, y: baseline.read_tile(peer, x, y, window),
            "ours full": lambda x, y: read_tile(
                slide, x, y, size_px=tile_px, mpp=mpp, decode="full"
            ),
            "ours scaled": lambda x, y: read_tile(slide, x, y, size_px=tile_px, mpp=mpp),
            **peers(path, peer, window),
        }
        views = {
            name: compared(read, slide, aligned, tile_px=tile_px, mpp=mpp)
            for name, read in reads.items()
        }
        sides = {name: (_each(read, corners), n) for name, read in reads.items()}
        limit = _limit(baseline, np.array(corners), path=path, window=window, peer=peer)
        if limit is not None:
            sides = {"limit": (limit, n), **sides}
        rates = take_turns(sides, rounds=rounds)
    return {
        "slide": path.name,
        "mpp": mpp,
        "tile_px": tile_px,
        "window": vars(window),
        "sides": {name: _figures(name, rates, views) for name in rates},
    }


def _each(read: ReadTile, corners: list[list[int]]) -> Callable[[], None]:
    def run() -> None:
        for x, y in corners:
            read(x, y)

    return run


def _limit(
    baseline: Any,  # noqa: ANN401 - a module found at run time
    corners: NDArray[np.int64],
    *,
    path: Path,
    window: Any,  # noqa: ANN401
    peer: Any,  # noqa: ANN401
) -> Callable[[], None] | None:
    """The bare decoding of the touched native tiles; None where they are not JPEG."""
    downsample = peer.level_downsamples[window.level]
    try:
        streams = baseline.native_tiles(str(path), corners, window, downsample=downsample)
    except ValueError:
        return None
    return lambda: baseline.decode_native(streams)


def peers(path: Path, slide: Any, window: Any) -> dict[str, ReadTile]:  # noqa: ANN401
    """Other readers that are installed, with the same window and the same area resampling."""
    edge, level = window.read_px, window.level

    def fitted(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        size = (window.tile_px, window.tile_px)
        return np.asarray(cv2.resize(pixels[..., :3], size, interpolation=cv2.INTER_AREA))

    found: dict[str, ReadTile] = {}
    if find_spec("tiffslide"):
        tiff = importlib.import_module("tiffslide").TiffSlide(str(path))
        found["tiffslide"] = lambda x, y: fitted(
            tiff.read_region((x, y), level, (edge, edge), as_array=True)
        )
    if find_spec("cucim"):
        image = importlib.import_module("cucim").CuImage(str(path))
        found["cucim"] = lambda x, y: fitted(
            np.asarray(image.read_region((x, y), (edge, edge), level=level, num_workers=1))
        )
    return found


def compared(
    read: ReadTile, slide: SlideReader, corners: list[list[int]], *, tile_px: int, mpp: float
) -> dict[str, float]:
    """Mean and largest difference to our full decoding, and the resolution that it shows.

    The resolution is that at which our tile around the same corner is most like it.
    """
    shown = [read(x, y) for x, y in corners]

    def differences(scale: float) -> NDArray[np.int64]:
        ours = [
            read_tile(slide, x, y, size_px=tile_px, mpp=mpp * scale, decode="full")
            for x, y in corners
        ]
        return np.abs(np.array(shown, np.int64) - np.array(ours))

    readable = [scale for scale in SCALES if mpp * scale * 1.02 >= slide.mpp]
    best = min(readable, key=lambda scale: float(differences(scale).mean()))
    exact = differences(1.0)
    return {
        "mean_difference": round(float(exact.mean()), 3),
        "largest_difference": int(exact.max()),
        "shows_mpp": mpp * best,
    }


def _figures(
    name: str, rates: dict[str, Rate], views: dict[str, dict[str, float]]
) -> dict[str, float]:
    rate, openslide_rate = rates[name], rates["openslide"]
    figures = {
        "tiles_per_s": round(rate.per_s, 1),
        "cpu_ms_per_tile": round(rate.cpu_ms, 3),
        "times_openslide": round(rate.per_s / openslide_rate.per_s, 2),
        "times_openslide_cpu": round(openslide_rate.cpu_ms / rate.cpu_ms, 2),
    }
    if "limit" in rates:
        figures["of_limit"] = round(rate.per_s / rates["limit"].per_s, 3)
        figures["of_limit_cpu"] = round(rates["limit"].cpu_ms / rate.cpu_ms, 3)
    return figures | views.get(name, {})


def print_table(found: dict[str, Any]) -> None:
    """One row a side, one column a figure."""
    rows = found["sides"]
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    print(f"\n{found['slide']}: {found['tile_px']} px at {found['mpp']} mpp, {found['window']}")
    print(f"{'':12}" + "".join(f"{column:>20}" for column in columns))
    for name, row in rows.items():
        print(f"{name:12}" + "".join(f"{row.get(column, ''):>20}" for column in columns))


if __name__ == "__main__":
    main()
