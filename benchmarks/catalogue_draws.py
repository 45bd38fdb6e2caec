"""Open, weigh and draw from a catalogue of millions of slides, in a fresh process.

The catalogue is made up: skewed labels, some of them null, 20x and 40x scans of all sizes. It has
no masks, since drawing slides and resolutions needs none.

Usage: uv run benchmarks/catalogue_draws.py [--rows 3100000] [--folder FOLDER] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

BLOCK = 65_536
AXES = {"tissue": 0.5, "stain": 1.0, "diagnosis": 0.5, "patient_id": 0.5}
MAGNIFICATIONS = {0.25: 0.2, 0.5: 0.4, 1.0: 0.2, 2.0: 0.2}  # METHODS 1.2
N_DRAWS, N_ROUNDS = 1 << 20, 5
N_VALUES = {"tissue": 200, "stain": 40, "diagnosis": 800, "scanner": 6}


def main() -> None:
    """Make the catalogue if it is not there, measure in a child, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=3_100_000)
    parser.add_argument("--folder", type=Path, help="keep the catalogue here")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"slides_{arguments.rows}.parquet"
        if not path.exists():
            _in_child(make_catalogue, path, arguments.rows)
        figures = _in_child(measure, path)
    for name, value in figures.items():
        text = f"{value:,.2f}" if isinstance(value, float) else str(value)
        sys.stdout.write(f"{name:28} {text}\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


def _in_child(function: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401
    """Run in a fresh process, whose peak memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def make_catalogue(path: Path, n_rows: int) -> None:
    """Write a synthetic catalogue, in blocks."""
    from anlage.slides.catalogue_table import table_schema, write_table

    labels = ("diagnosis", "scanner", "magnification")
    schema = table_schema(pa.field(name, pa.string()) for name in labels)
    starts = range(0, n_rows, BLOCK)
    write_table(path, (_block(first, min(BLOCK, n_rows - first)) for first in starts), schema)


def _block(first: int, n: int) -> pa.Table:
    generator = np.random.default_rng(first)
    row = np.arange(first, first + n)
    is_40x = generator.random(n) < 0.4
    width, height = np.exp(generator.normal(11.3, 0.4, (2, n))).astype(np.int64)
    names = pa.array([f"{i:08d}" for i in row.tolist()])
    slide_id = pc.binary_join_element_wise(pa.scalar("slide"), names, "-")
    columns = {
        "slide_id": slide_id,
        "patient_id": _labels("patient", np.minimum(generator.zipf(1.6, n), 225_000) % 225_000),
        "uri": pc.binary_join_element_wise("s3://archive/slides/", slide_id, ".svs", ""),
        "fingerprint": pa.array([f"{i:032x}" for i in (row * 2654435761).tolist()]),
        "n_bytes": pa.array(width * height // 8),
        "width": pa.array(width),
        "height": pa.array(height),
        "n_levels": pa.array(np.full(n, 3)),
        "level_downsamples": _lists([1.0, 4.0, 16.0], n),
        "level_tile_width": _lists([240, 240, 240], n),
        "level_tile_height": _lists([240, 240, 240], n),
        "mpp": pa.array(np.where(is_40x, 0.2528, 0.5031)),
        "mpp_source": _labels("vendor", np.zeros(n, int)),
        "vendor": _labels("aperio", np.zeros(n, int)),
        "reader": _labels("tiled-tiff", np.zeros(n, int)),
        "tissue_area_mm2": pa.array(generator.gamma(2, 60, n) * (generator.random(n) > 0.002)),
        "tissue_method": _labels("otsu", np.zeros(n, int)),
        "mask_mpp": pa.array(np.full(n, 8.0)),
        "mask_pack": _labels("pack", row // 4096),
        "mask_offset": pa.array(row * 4000),
        "index_key": slide_id,
        "magnification": _labels("objective", np.where(is_40x, 40, 20)),
    }
    for name, n_values in N_VALUES.items():
        code = np.minimum(generator.zipf(1.4, n), 10 * n_values) % n_values
        columns[name] = _labels(name, code, is_null=generator.random(n) < 0.05)
    return pa.table(columns)


def _labels(stem: str, code: np.ndarray, is_null: np.ndarray | None = None) -> pa.Array:
    values, inverse = np.unique(code, return_inverse=True)
    names = pa.array([f"{stem} {value}" for value in values.tolist()])
    return names.take(pa.array(inverse, mask=is_null))


def _lists(values: list, n: int) -> pa.Array:
    ends = pa.array(np.arange(0, len(values) * n + 1, len(values)), pa.int32())
    return pa.ListArray.from_arrays(ends, pa.array(np.tile(values, n)))


def measure(path: Path) -> dict[str, float | int | str]:
    """Seconds, draws a second and memory of this process."""
    imports = time.perf_counter()
    from anlage.slides.catalogue import Catalogue
    from anlage.tiles.sampling import sampler_from_catalogue

    began = time.perf_counter()
    catalogue = Catalogue.open(path)
    figures: dict[str, float | int | str] = {
        "rows": len(catalogue),
        "balance axes": ", ".join(AXES),
        "import, s": began - imports,
        "open, s": time.perf_counter() - began,
    }
    for tiles_per_region in (1, 4, 16):
        began = time.perf_counter()
        sampler = sampler_from_catalogue(
            catalogue,
            seed=0,
            size_px=392,
            batch_size=1024,
            magnifications=MAGNIFICATIONS,
            min_tissue=0.65,
            tiles_per_region=tiles_per_region,
            balance=AXES,
        )
        figures.setdefault("weights, s", time.perf_counter() - began)
        rates = []
        for first in range(0, N_ROUNDS * N_DRAWS, N_DRAWS):
            began = time.perf_counter()
            sampler.draw_many(np.arange(first, first + N_DRAWS))
            rates.append(N_DRAWS / (time.perf_counter() - began))
        figures[f"draws/s, {tiles_per_region} a region"] = float(np.median(rates))
        del sampler
    figures["peak memory, GB"] = _peak_gb()
    return figures


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
