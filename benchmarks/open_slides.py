"""What an open slide keeps in memory, on the local disk and behind HTTP.

Opens one slide many times over, reads one tile of each, and divides what the process grew by.
The remote one is served by ``range_server.py`` in a process of its own.

Usage: open_slides.py SLIDE.svs [--shared ../shared] [--slides 1000] [--json FILE]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil

MPP, TILE_PX = 0.5, 256


def main() -> None:
    """Measure each kind in a process of its own and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--slides", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    server = [sys.executable, str(arguments.shared / "tools" / "range_server.py")]
    slide = arguments.slide.resolve()
    spawn = get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as cache,
        subprocess.Popen(  # noqa: S603 - this interpreter, the server named by the user
            [*server, str(slide.parent)], stdout=subprocess.PIPE, text=True
        ) as process,
    ):
        assert process.stdout is not None
        url = f"{process.stdout.readline().split()[-1]}/{slide.name}"
        figures = {"slides": arguments.slides}
        for name, location in (("local_mb_each", str(slide)), ("remote_mb_each", url)):
            with spawn.Pool(1) as pool:
                figures[name] = pool.apply(mb_each, (location, arguments.slides, cache))
        process.terminate()
    print(json.dumps(figures, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


def mb_each(location: str, n_slides: int, cache: str) -> float:
    """Growth of this process by each open slide, MB; ten are opened and closed before."""
    from anlage.slides.levels import read_tile
    from anlage.slides.reader import SlideReader, open_slide

    os.environ["ANLAGE_CACHE"] = cache
    generator = np.random.default_rng(0)

    def opened() -> SlideReader:
        slide = open_slide(location)
        x, y = generator.integers(0, np.array(slide.size) // 2).tolist()
        read_tile(slide, x, y, size_px=TILE_PX, mpp=MPP)
        return slide

    for _ in range(10):
        opened().close()
    gc.collect()
    before = psutil.Process().memory_info().rss
    slides = [opened() for _ in range(n_slides)]
    gc.collect()
    return (psutil.Process().memory_info().rss - before) / len(slides) / 1e6


if __name__ == "__main__":
    main()
