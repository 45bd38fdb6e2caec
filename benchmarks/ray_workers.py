"""Ray: two workers beside one, on slides behind HTTP with latency, without a network.

Each worker is a process with one thread that reads. The slide is served under several names by
``range_server.py`` of the tools folder, in a process of its own, which waits before each answer.
One and two workers take turns, after a round that is thrown away; the rates are from the plan to
the last bag, without the start of Ray and its workers.

Usage, in the repository, with the folder that holds ``tools/`` beside it:
    uv run benchmarks/ray_workers.py SLIDE.svs [--slides 8] [--shared ../shared] [--rounds 3]
        [--latency-ms 20] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from anlage.embedding.ray_cluster import embed_on_ray
from anlage.embedding.ray_workers import RayOptions
from anlage.embedding.settings import EmbedSettings
from anlage.slides.catalogue import Catalogue
from anlage.slides.indexing.index import index_slides

FACTS = {"tile_px": 224, "mpp": 0.5, "mean": (0.5,) * 3, "std": (0.5,) * 3, "width": 3}


def no_network() -> tuple[Any, dict[str, Any]]:
    """The encoder that workers load from this file: a tile's mean colour."""

    def mean_colour(image_B3SS: Tensor) -> Tensor:
        return image_B3SS.mean((2, 3))

    return mean_colour, FACTS


def main() -> None:
    """Serve the slide, measure one and two workers, print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("slide", type=Path)
    parser.add_argument("--slides", type=int, default=8, help="names it is served under")
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency-ms", type=float, default=20)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        figures = measure(arguments, Path(temporary))
    print(json.dumps(figures, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Rates of one and two workers, their ratio, and the load they were measured under."""
    import ray

    served = folder / "slides"
    served.mkdir()
    names = [f"s{k}{arguments.slide.suffix}" for k in range(arguments.slides)]
    for name in names:
        shutil.copyfile(arguments.slide, served / name)
    os.environ["ANLAGE_CACHE"] = str(folder / "cache")
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    rates: dict[int, list[float]] = {1: [], 2: []}
    with serve(served, arguments) as address:
        urls = [f"{address}/{name}" for name in names]
        catalogue = index_slides(urls, folder / "slides.parquet").catalogue
        assert catalogue is not None
        load = [os.getloadavg()[0]]
        for round_ in range(arguments.rounds + 1):
            for workers, found in rates.items():
                output = folder / f"bags-{round_}-{workers}"
                rate, n_tiles = rate_of(catalogue, output, workers)
                if round_:
                    found.append(rate)
                load.append(os.getloadavg()[0])
    ray.shutdown()
    one, two = (statistics.median(found) for found in rates.values())
    return {
        "n_tiles": n_tiles,
        "tiles_per_s": {"1 worker": round(one, 1), "2 workers": round(two, 1)},
        "rounds": rates,
        "2 workers over 1": round(two / one, 2),
        "load average": [round(each, 1) for each in load],
    }


def rate_of(catalogue: Catalogue, output: Path, workers: int) -> tuple[float, int]:
    """Tiles a second, and how many there were."""
    result = embed_on_ray(
        f"{Path(__file__).resolve()}:no_network",
        catalogue,
        output,
        settings=EmbedSettings(threads=1),
        options=RayOptions(workers=workers, gpus_per_worker=0),
    )
    assert not result.refused, result.refused
    return result.n_tiles / result.seconds, result.n_tiles


@contextmanager
def serve(folder: Path, arguments: argparse.Namespace) -> Iterator[str]:
    """The address of a server of the folder that waits before it answers."""
    server = arguments.shared.resolve() / "tools" / "range_server.py"
    command = [sys.executable, str(server), str(folder), "--latency-ms", str(arguments.latency_ms)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - ours
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
