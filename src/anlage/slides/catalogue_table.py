"""The table of a catalogue: its columns, how it is written, what is checked on load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from anlage.errors import CatalogueError
from anlage.files import replace_whole

FORMAT_KEY, FORMAT = b"anlage.format", b"catalogue/1"
REQUIRED = {
    "slide_id": pa.string(),
    "patient_id": pa.string(),
    "uri": pa.string(),
    "fingerprint": pa.string(),
    "n_bytes": pa.int64(),
    "width": pa.int64(),
    "height": pa.int64(),
    "n_levels": pa.int64(),
    "level_downsamples": pa.list_(pa.float64()),
    "mpp": pa.float64(),
    "mpp_source": pa.string(),
    "vendor": pa.string(),
    "reader": pa.string(),
    "tissue_area_mm2": pa.float64(),
}
NULLABLE = {"stain": pa.string(), "tissue": pa.string(), "split": pa.string()}
FIXED = REQUIRED | NULLABLE
REMEDY = "Make it again with `anlage index SLIDES -o slides.parquet`."


def write_table(path: Path, rows: list[dict[str, Any]], label_columns: tuple[str, ...]) -> None:
    """Write a catalogue's table whole, its columns in the format's order, labels last.

    Args:
        path: Parquet file to make or replace.
        rows: A dict of columns for each slide; labels that are missing become null.
        label_columns: Names of the label columns, all of them text.
    """
    columns = FIXED | dict.fromkeys(label_columns, pa.string())
    schema = pa.schema(
        [pa.field(name, kind, nullable=name not in REQUIRED) for name, kind in columns.items()],
        metadata={FORMAT_KEY: FORMAT},
    )
    with replace_whole(path) as beside:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), beside)


def read_table(path: Path) -> pa.Table:
    """Read a catalogue's table and check it.

    Raises:
        CatalogueError: If the file is missing, damaged, no catalogue, of another version, lacks
            a column, holds a null where none may be, or a slide_id twice.
    """
    table = _read_parquet(path)
    _check(path, table)
    return table


def _read_parquet(path: Path) -> pa.Table:
    if not path.is_file():
        raise CatalogueError(path, f"does not exist. {REMEDY}")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CatalogueError(path, f"is no Parquet file, or damaged: {reason}. {REMEDY}") from error
    stated = (table.schema.metadata or {}).get(FORMAT_KEY)
    if stated is None:
        raise CatalogueError(path, f"is Parquet but no catalogue of slides. {REMEDY}")
    if stated != FORMAT:
        got = stated.decode(errors="replace")
        message = f"needs format {FORMAT.decode()!r}; got {got!r}, of another version. {REMEDY}"
        raise CatalogueError(path, message)
    return table


def _check(path: Path, table: pa.Table) -> None:
    for name, kind in FIXED.items():
        if name not in table.column_names:
            raise CatalogueError(path, f"has no column {name!r}. {REMEDY}")
        column = table.column(name)
        if column.type != kind:
            raise CatalogueError(
                path, f"needs {name!r} of type {kind}; got {column.type}. {REMEDY}"
            )
        if name in REQUIRED and column.null_count:
            raise CatalogueError(path, f"has {column.null_count} nulls in {name!r}. {REMEDY}")
    counts = pc.value_counts(table.column("slide_id"))
    twice = [entry["values"].as_py() for entry in counts if entry["counts"].as_py() > 1]
    if twice:
        raise CatalogueError(path, f"has slide_id {twice[0]!r} more than once. {REMEDY}")
