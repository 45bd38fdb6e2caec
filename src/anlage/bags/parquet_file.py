"""A bag as Parquet: one row a tile, for DuckDB, Polars and the like.

slide_id   string
x, y       int64, upper-left corner, level-0 pixels
features   list of D float32, of fixed size
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from anlage.bags.bag import Bag
from anlage.bags.foreign import OURS, FoundTiles, ours_as_text, ours_from_text, rows_or_refuse
from anlage.errors import BagError
from anlage.files import replace_whole

COLUMNS = ("slide_id", "x", "y", "features")


def write_parquet(path: Path, bag: Bag) -> None:
    """Write a bag as a table; whole or not at all.

    Raises:
        OSError: If the disk is full or refuses; carries ``path``.
    """
    n_tiles, width = bag.features.shape
    values = pa.array(bag.features.astype(np.float32).ravel())
    columns = {
        "slide_id": pa.array([bag.slide_id] * n_tiles, pa.string()),
        "x": pa.array(bag.coords[:, 0]),
        "y": pa.array(bag.coords[:, 1]),
        "features": pa.FixedSizeListArray.from_arrays(values, width),
    }
    table = pa.table(columns).replace_schema_metadata({OURS: ours_as_text(bag)})
    try:
        with replace_whole(path) as beside:
            pq.write_table(table, beside, compression="none", use_dictionary=["slide_id"])
    except OSError as error:
        raise OSError(error.errno, f"write_bag: {error.strerror}", str(path)) from error


def is_other_table(path: Path) -> bool:
    """Whether a Parquet file is whole and no bag: a catalogue, or embeddings of slides."""
    try:
        return not set(COLUMNS) <= set(pq.read_schema(path).names)
    except (OSError, pa.ArrowInvalid):
        return False  # read_parquet says what is wrong with it


def read_parquet(path: Path, slide_id: str) -> FoundTiles:
    """A bag from a table as above; columns beside these are passed over.

    Raises:
        BagError: If the file is damaged, lacks a column, or holds another slide's tiles.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        msg = f"not a whole Parquet file ({error}). Make it again."
        raise BagError(path, msg) from error
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        known = ", ".join(table.column_names)
        raise BagError(path, f"needs columns {', '.join(COLUMNS)}; got {known}. It is no bag.")
    others = {str(name) for name in table["slide_id"].unique().to_pylist()} - {slide_id}
    if others:
        msg = f"needs tiles of slide {slide_id!r} alone; got {min(others)!r} too. "
        raise BagError(path, f"{msg}Write one file a slide, named after it.")
    kept = table["features"].combine_chunks()
    if not pa.types.is_fixed_size_list(kept.type):
        msg = f"needs features of fixed length; got {kept.type}. Cast the column."
        raise BagError(path, msg)
    features = kept.flatten().to_numpy(zero_copy_only=False).reshape(len(kept), kept.type.list_size)
    coords = np.stack([table[axis].to_numpy() for axis in ("x", "y")], axis=1).astype(np.int64)
    rows_or_refuse(path, features, coords, what="bag")
    metadata = table.schema.metadata or {}
    ours = metadata.get(OURS.encode())
    return FoundTiles(
        slide_id=slide_id,
        features=features,
        coords=coords,
        attributes=ours_from_text(path, None if ours is None else ours.decode()),
    )
