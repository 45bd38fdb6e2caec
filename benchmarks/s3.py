"""Random tiles of a slide in an S3 bucket and of the same file on disk: equal pixels, and rates.

The server must be running; s3rver (from npm) keeps objects as files and answers ranges:
    npx --yes s3rver@3.7.1 --directory FOLDER --port 4568 --configure-bucket slides

Usage, in the repository; the keys are the ones that s3rver knows:
    AWS_ENDPOINT_URL=http://127.0.0.1:4568 AWS_REGION=us-east-1 AWS_ACCESS_KEY_ID=S3RVER
    AWS_SECRET_ACCESS_KEY=S3RVER uv run benchmarks/s3.py SLIDE.svs
        [--bucket slides] [--tiles 600] [--rounds 5] [--depth 48] [--json FILE]

Sides take turns in every round, each with the same tiles, after one round that is thrown away.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import obstore
from obstore.store import S3Store
from remote import MPP, TILE_PX, read_ours
from turns import take_turns

from anlage.slides.levels import TileWindow
from anlage.slides.reader import SlideReader, open_slide
from anlage.slides.regions import read_tiles

N_COMPARED = 64


def main() -> None:
    """Put the slide into the bucket, read it from both places, print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("slide", type=Path)
    parser.add_argument("--bucket", default="slides")
    parser.add_argument("--tiles", type=int, default=600, help="in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--depth", type=int, default=48, help="windows in flight")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    location = f"s3://{arguments.bucket}/{arguments.slide.name}"
    store = S3Store(arguments.bucket, client_options={"allow_http": True})
    obstore.put(store, arguments.slide.name, arguments.slide)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["ANLAGE_CACHE"] = cache
        with open_slide(arguments.slide) as here, open_slide(location) as there:
            figures = measure(
                here,
                there,
                n_tiles=arguments.tiles,
                rounds=arguments.rounds,
                depth=arguments.depth,
            )
    print(json.dumps(figures, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


def measure(
    here: SlideReader, there: SlideReader, *, n_tiles: int, rounds: int, depth: int
) -> dict[str, Any]:
    """Median rates, their ratio, and the largest difference of pixels."""
    span = round(TILE_PX * MPP / here.mpp)
    generator = np.random.default_rng(0)
    extent = [here.size.width - span, here.size.height - span]
    corners_N2 = generator.integers(0, extent, (n_tiles, 2))
    sides = {
        name: (partial(read_ours, slide, corners_N2, decode="scaled", depth=depth), n_tiles)
        for name, slide in (("local", here), ("s3", there))
    }
    per_s = {name: rate.per_s for name, rate in take_turns(sides, rounds=rounds).items()}
    return {
        "depth": depth,
        "rounds": rounds,
        "tiles_per_s": per_s,
        "s3_share_of_local": per_s["s3"] / per_s["local"],
        "largest_difference": _largest_difference(here, there, corners_N2[:N_COMPARED]),
    }


def _largest_difference(here: SlideReader, there: SlideReader, corners: np.ndarray) -> int:
    windows = [TileWindow(x, y, TILE_PX, MPP) for x, y in corners.tolist()]
    pairs = zip(read_tiles(here, windows), read_tiles(there, windows), strict=True)
    return max(int(np.abs(a.astype(int) - b.astype(int)).max()) for a, b in pairs)


if __name__ == "__main__":
    main()
