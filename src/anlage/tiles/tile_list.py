"""Tile lists: which tiles of which slides are worth drawing, and how often, as one Parquet file.

Shape suffixes: N listed tiles, T levels of clusters.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from anlage.errors import CatalogueError
from anlage.files import replace_whole

FORMAT = "tile_list/1"
NEEDED = ("slide_id", "x", "y", "mpp", "tile_px")
REMEDY = "Write it with `anlage curate`, or as docs/formats.md says."
Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TileList:
    """Tiles of slides, by place.

    Attributes:
        slide_ids: Names of the slides, each once.
        slide_N: (N,) int64 the slide of each tile, an index into ``slide_ids``.
        corner_N2: (N, 2) int64 upper-left corners (x, y), level-0 pixels.
        mpp_N: (N,) float64 resolution, micrometres per pixel.
        tile_px_N: (N,) int64 edge, pixels at that resolution.
        weight_N: (N,) float64, >= 0, not all 0: how often a tile is drawn beside the others.
        cluster_NT: (N, T) int64 path of clusters, coarsest first; T may be 0.
        about: What it was made from.
    """

    slide_ids: tuple[str, ...]
    slide_N: Integers
    corner_N2: Integers
    mpp_N: Floats
    tile_px_N: Integers
    weight_N: Floats
    cluster_NT: Integers
    about: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.slide_N)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what decides the draws: places and weights, in their order."""
        digest = hashlib.sha256(json.dumps(self.slide_ids).encode())
        for values in (self.slide_N, self.corner_N2, self.mpp_N, self.tile_px_N, self.weight_N):
            digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()


def write_tile_list(path: str | Path, tiles: TileList) -> None:
    """Write a list whole or not at all.

    Raises:
        OSError: If the disk is full or refuses.
    """
    n_levels = tiles.cluster_NT.shape[1]
    names = pa.array(tiles.slide_ids, pa.string())
    slide = pa.DictionaryArray.from_arrays(pa.array(tiles.slide_N, pa.int32()), names)
    columns = {
        "slide_id": slide,
        "x": pa.array(tiles.corner_N2[:, 0]),
        "y": pa.array(tiles.corner_N2[:, 1]),
        "mpp": pa.array(tiles.mpp_N),
        "tile_px": pa.array(tiles.tile_px_N, pa.int32()),
        "weight": pa.array(tiles.weight_N),
    }
    if n_levels:
        paths = pa.array(tiles.cluster_NT.ravel(), pa.int32())
        columns["cluster"] = pa.FixedSizeListArray.from_arrays(paths, n_levels)
    about = {"format": FORMAT, **tiles.about}
    table = pa.table(columns).replace_schema_metadata({"anlage": json.dumps(about)})
    with replace_whole(path) as beside:
        pq.write_table(table, beside)


def read_tile_list(path: str | Path) -> TileList:
    """Read a list, ours or anyone's: columns slide_id, x, y, mpp, tile_px; weight and cluster too.

    Tiles without a weight weigh 1 each.

    Raises:
        CatalogueError: If it is missing, damaged, of another format, empty, or lacks a column or a
            value; or a number is out of range.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise CatalogueError(path, f"cannot be read as a tile list ({error}). {REMEDY}") from error
    about = _about(path, table)
    _refuse_missing(path, table)
    names = table["slide_id"].combine_chunks().cast(pa.string()).dictionary_encode()
    n_tiles = table.num_rows
    try:
        tiles = TileList(
            slide_ids=tuple(names.dictionary.to_pylist()),
            slide_N=_numbers(names.indices, np.int64),
            corner_N2=np.stack([_numbers(table[axis], np.int64) for axis in "xy"], axis=1),
            mpp_N=_numbers(table["mpp"], np.float64),
            tile_px_N=_numbers(table["tile_px"], np.int64),
            weight_N=(
                _numbers(table["weight"], np.float64)
                if "weight" in table.column_names
                else np.ones(n_tiles)
            ),
            cluster_NT=_clusters(table),
            about=about,
        )
    except (pa.ArrowException, ValueError, TypeError) as error:
        msg = f"needs whole numbers x, y, tile_px and numbers mpp, weight ({error}). {REMEDY}"
        raise CatalogueError(path, msg) from error
    _refuse_out_of_range(path, tiles)
    return tiles


def _about(path: str | Path, table: pa.Table) -> dict[str, Any]:
    stored = (table.schema.metadata or {}).get(b"anlage")
    try:
        about = {} if stored is None else dict(json.loads(stored))
    except ValueError as error:
        raise CatalogueError(path, f"has damaged metadata ({error}). {REMEDY}") from error
    if about and about.get("format") != FORMAT:
        rule = f"needs format {FORMAT!r}; got {about.get('format')!r}"
        raise CatalogueError(path, f"{rule}. {REMEDY}")
    return {name: value for name, value in about.items() if name != "format"}


def _refuse_missing(path: str | Path, table: pa.Table) -> None:
    missing = [name for name in NEEDED if name not in table.column_names]
    if missing:
        got = ", ".join(table.column_names)
        msg = f"needs columns {', '.join(NEEDED)}; has no {', '.join(missing)} among {got}. "
        raise CatalogueError(path, f"{msg}{REMEDY}")
    if table.num_rows == 0:
        raise CatalogueError(path, f"lists no tile. {REMEDY}")
    read = [name for name in (*NEEDED, "weight") if name in table.column_names]
    nulls = [name for name in read if table[name].null_count]
    if nulls:
        raise CatalogueError(path, f"lacks values of {', '.join(nulls)}. Leave those rows out.")


def _numbers(column: pa.ChunkedArray | pa.Array, kind: type) -> NDArray[Any]:
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return np.asarray(whole.cast(pa.from_numpy_dtype(kind)).to_numpy(zero_copy_only=False))


def _clusters(table: pa.Table) -> Integers:
    if "cluster" not in table.column_names:
        return np.zeros((table.num_rows, 0), dtype=np.int64)
    paths = table["cluster"].combine_chunks()
    return _numbers(paths.flatten(), np.int64).reshape(table.num_rows, -1)


def _refuse_out_of_range(path: str | Path, tiles: TileList) -> None:
    rules = {
        "x and y from 0": (tiles.corner_N2 < 0).any(axis=1),
        "mpp above 0": ~(np.isfinite(tiles.mpp_N) & (tiles.mpp_N > 0)),
        "tile_px of at least 1": tiles.tile_px_N < 1,
        "finite weights from 0": ~(np.isfinite(tiles.weight_N) & (tiles.weight_N >= 0)),
    }
    for rule, is_wrong in rules.items():
        if is_wrong.any():
            row = int(is_wrong.argmax())
            x, y = tiles.corner_N2[row].tolist()
            got = (
                f"{tiles.slide_ids[tiles.slide_N[row]]}, x={x}, y={y}, mpp={tiles.mpp_N[row]:g}, "
                f"tile_px={tiles.tile_px_N[row]}, weight={tiles.weight_N[row]:g}"
            )
            raise CatalogueError(path, f"needs {rule}; got {got} in row {row}. {REMEDY}")
    if not tiles.weight_N.any():
        raise CatalogueError(path, f"gives every tile the weight 0. {REMEDY}")
