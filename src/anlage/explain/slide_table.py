"""Scored tiles as a Parquet table, with what they were made from in its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from anlage.explain.slide_scores import ScoredTiles
from anlage.files import replace_whole


def write_table(path: Path, tiles: ScoredTiles, facts: Mapping[str, Any]) -> None:
    """Write one row a tile in the bag's order: its place, then a column a score, raw.

    Args:
        path: Parquet file to write.
        tiles: The tiles.
        facts: What they were made from; JSON under the key ``anlage`` of the schema's metadata.
    """
    n_tiles = len(tiles)
    columns = {
        "slide_id": pa.array([tiles.slide_id] * n_tiles, pa.string()),
        "x": pa.array(tiles.corner_L2[:, 0], pa.int64()),
        "y": pa.array(tiles.corner_L2[:, 1], pa.int64()),
        "edge_level0_px": pa.array(np.full(n_tiles, tiles.edge_level0_px), pa.float64()),
    }
    columns |= {score.name: pa.array(score.weight_L, pa.float32()) for score in tiles.scores}
    metadata = {"anlage": json.dumps(dict(facts), sort_keys=True)}
    table = pa.table(columns).replace_schema_metadata(metadata)
    with replace_whole(path) as beside:
        pq.write_table(table, beside)
