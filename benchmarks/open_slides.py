"""Memory of many open slides, in a fresh process: after opening them, and after 20 reads of each.

The same file is opened again and again, which shares nothing but the page cache. Resident memory
is that of the whole process less what it was before the first was opened.

Usage: uv run benchmarks/open_slides.py SLIDE [SLIDE ...] [-n 1000] [--reads 20] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from pathlib import Path

import numpy as np

from anlage.slides.levels import read_tile
from anlage.slides.reader import open_slide

PAGES = Path("/proc/self/statm")


def main() -> None:
    """Measure each slide in a process of its own, print a table and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("slides", nargs="+", type=Path)
    parser.add_argument("-n", type=int, default=1000, help="handles that are open at once")
    parser.add_argument("--reads", type=int, default=20, help="of 256 px tiles, from each")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    figures = []
    for path in given.slides:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(measure, (str(path), given.n, given.reads))
        figures.append(found)
        print("  ".join(f"{name} {value}" for name, value in found.items()))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")


def measure(path: str, n: int, n_reads: int) -> dict[str, float | str]:
    """Megabytes and milliseconds of one open slide, in this process."""
    with open_slide(path) as slide:  # imports and first allocations are none of a slide's
        read_tile(slide, 0, 0, size_px=256, mpp=2 * slide.mpp)
        limit = [max(1, px - round(512 * slide.levels[0].downsample)) for px in slide.size]
    before, start = resident_mb(), time.perf_counter()
    slides = [open_slide(path) for _ in range(n)]
    opened, opening = resident_mb(), time.perf_counter() - start
    draw = np.random.default_rng(0)
    for slide in slides:
        for x, y in draw.integers(0, limit, (n_reads, 2)).tolist():
            read_tile(slide, x, y, size_px=256, mpp=2 * slide.mpp)
    return {
        "slide": Path(path).name,
        "reader": slides[0].reader,
        "n": n,
        "mb_each_open": round((opened - before) / n, 3),
        "mb_each_after_reads": round((resident_mb() - before) / n, 3),
        "ms_each_to_open": round(1e3 * opening / n, 3),
    }


def resident_mb() -> float:
    """Resident memory of this process, MB."""
    return int(PAGES.read_text().split()[1]) * resource.getpagesize() / 1e6


if __name__ == "__main__":
    main()
