"""The table of a catalogue: its columns, how it is written, what is checked when it is opened."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from anlage.errors import CatalogueError
from anlage.files import replace_whole

FORMAT_KEY, FORMAT = b"anlage.format", b"catalogue/2"
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
    "level_tile_width": pa.list_(pa.int64()),
    "level_tile_height": pa.list_(pa.int64()),
    "mpp": pa.float64(),
    "mpp_source": pa.string(),
    "vendor": pa.string(),
    "reader": pa.string(),
    "tissue_area_mm2": pa.float64(),
    "tissue_method": pa.string(),
    "mask_mpp": pa.float64(),
    "mask_pack": pa.string(),
    "mask_offset": pa.int64(),
    "index_key": pa.string(),
}
NULLABLE = dict.fromkeys(("version", "stain", "tissue", "split"), pa.string())
FIXED = REQUIRED | NULLABLE
PLACES = {"uri", "mask_pack", "mask_offset", "index_key"}  # where things lie, not what they are
ROWS_PER_GROUP = 4096  # small, so that a row costs little to fetch
MOST_ROWS_PER_GROUP = 65_536  # of a table that another program wrote
N_CACHED_GROUPS = 8
MOST_HELD_BYTES = 64 * 2**20  # a smaller file is held, so that nobody can write over it meanwhile
REMEDY = "Make it again with `anlage index SLIDES -o slides.parquet`."


class UnreadableTableError(CatalogueError):
    """A table that is damaged or of another version, so that nothing in it can be kept."""


def table_schema(others: Iterable[pa.Field] = ()) -> pa.Schema:
    """The format's columns in its order, then the labels and what users added."""
    fields = [pa.field(name, kind, nullable=name not in REQUIRED) for name, kind in FIXED.items()]
    return pa.schema([*fields, *others], metadata={FORMAT_KEY: FORMAT})


def write_table(path: Path, blocks: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Write a catalogue's table whole.

    Args:
        path: Parquet file to make or replace.
        blocks: Rows, in parts that fit into memory; columns that a part lacks become null.
        schema: Of the file, from ``table_schema``.
    """
    with replace_whole(path) as beside, pq.ParquetWriter(beside, schema) as writer:
        for block in blocks:
            columns = [
                block.column(field.name).cast(field.type)
                if field.name in block.column_names
                else pa.nulls(len(block), field.type)
                for field in schema
            ]
            whole = pa.Table.from_arrays(columns, schema=schema)
            writer.write_table(whole, row_group_size=ROWS_PER_GROUP)


class TableFile:
    """A catalogue's table in its file, read column by column and group by group as needed.

    Safe to share between threads. Holds no column, so that three million rows cost what a caller
    asks for; the file stays open, and with it the rows of the moment it was opened.

    Attributes:
        path: The Parquet file.
        schema: Its columns.
        n_rows: Rows in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file = _open_parquet(path)
        self.schema: pa.Schema = self._file.schema_arrow
        metadata = self._file.metadata
        counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._ends: NDArray[np.int64] = np.cumsum([0, *counts], dtype=np.int64)
        self.n_rows = int(self._ends[-1])
        self._has_small_groups = max(counts, default=0) <= MOST_ROWS_PER_GROUP
        self._groups: OrderedDict[tuple[int, tuple[str, ...]], pa.Table] = OrderedDict()
        self._kept: dict[str, pa.ChunkedArray] = {}
        _check_columns(path, self.schema)

    def refuse_nulls(self) -> None:
        """Raise CatalogueError where a column that must be filled is not, by the file's footer."""
        metadata = self._file.metadata
        for column in range(metadata.num_columns):
            name = metadata.schema.column(column).path
            if name not in REQUIRED:
                continue
            nulls = 0
            for group in range(metadata.num_row_groups):
                statistics = metadata.row_group(group).column(column).statistics
                if statistics is None or not statistics.has_null_count:
                    nulls = self.column(name).null_count
                    break
                nulls += statistics.null_count
            if nulls:
                raise CatalogueError(self.path, f"has {nulls} nulls in {name!r}. {REMEDY}")

    def column(self, name: str) -> pa.ChunkedArray:
        """One column, whole."""
        return self._read(None, [name]).column(0)

    def blocks(self, columns: Sequence[str] | None = None) -> Iterator[tuple[int, pa.Table]]:
        """The table in parts of at most 65,536 rows or one row group: first row, rows."""
        names = None if columns is None else list(columns)
        first = 0
        while first < len(self._ends) - 1:
            last = first + 1
            while (
                last < len(self._ends) - 1
                and self._ends[last + 1] - self._ends[first] <= MOST_ROWS_PER_GROUP
            ):
                last += 1
            yield int(self._ends[first]), self._read(range(first, last), names)
            first = last

    def rows_between(self, first: int, last: int) -> pa.Table:
        """The rows from ``first`` to before ``last``, by reading the row groups that hold them."""
        start = int(np.searchsorted(self._ends, first, side="right")) - 1
        stop = int(np.searchsorted(self._ends, last, side="left"))
        block = self._read(range(start, stop), None)
        return block.slice(first - int(self._ends[start]), last - first)

    def record(self, row: int, columns: Sequence[str] | None = None) -> dict[str, Any]:
        """The values of one row, by reading its row group of those columns."""
        names = tuple(self.schema.names if columns is None else columns)
        if not self._has_small_groups:  # of a million rows: fetched once, not for every row
            return {name: self._kept_column(name)[row].as_py() for name in names}
        group = int(np.searchsorted(self._ends, row, side="right")) - 1
        with self._lock:
            table = self._groups.get((group, names))
        if table is None:
            table = self._read([group], list(names))
        with self._lock:
            self._groups[group, names] = table
            self._groups.move_to_end((group, names))
            while len(self._groups) > N_CACHED_GROUPS:
                self._groups.popitem(last=False)
        record: dict[str, Any] = table.slice(row - int(self._ends[group]), 1).to_pylist()[0]
        return record

    def _kept_column(self, name: str) -> pa.ChunkedArray:
        if name not in self._kept:
            self._kept[name] = self.column(name)
        return self._kept[name]

    def _read(self, groups: Sequence[int] | None, columns: list[str] | None) -> pa.Table:
        every = range(len(self._ends) - 1)
        try:
            with self._lock:
                return self._file.read_row_groups(every if groups is None else groups, columns)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(self.path, error) from error


def _open_parquet(path: Path) -> pq.ParquetFile:
    if not path.is_file():
        raise CatalogueError(path, f"does not exist. {REMEDY}")
    try:
        is_small = path.stat().st_size <= MOST_HELD_BYTES
        file = pq.ParquetFile(_held(path) if is_small else path)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from error
    stated = (file.schema_arrow.metadata or {}).get(FORMAT_KEY)
    if stated is None:
        raise CatalogueError(path, f"is Parquet but no catalogue of slides. {REMEDY}")
    if stated != FORMAT:
        got = stated.decode(errors="replace")
        if _version_of(got) > _version_of(FORMAT.decode()):  # not ours to write over
            msg = (
                f"needs format {FORMAT.decode()!r}; got {got!r}, of a newer anlage. Update anlage."
            )
            raise CatalogueError(path, msg)
        message = f"needs format {FORMAT.decode()!r}; got {got!r}, of another version. {REMEDY}"
        raise UnreadableTableError(path, message)
    return file


def _held(path: Path) -> pa.BufferReader:
    """A file in Arrow's memory. Python's would be let go of by a thread of Arrow's.

    Such a thread that is late waits for Python's lock when Python has ended, and the process is
    aborted: 3 of 400 commands, on a busy machine.
    """
    with pa.OSFile(os.fspath(path)) as file:
        return pa.BufferReader(file.read_buffer())


def _version_of(stated: str) -> int:
    number = stated.rpartition("/")[2]
    return int(number) if number.isdecimal() else 0


def _damaged(path: Path, error: Exception) -> CatalogueError:
    reason = str(error).splitlines()[0]
    return UnreadableTableError(path, f"is no Parquet file, or damaged: {reason}. {REMEDY}")


def _check_columns(path: Path, schema: pa.Schema) -> None:
    for name, kind in FIXED.items():
        if name not in schema.names:
            raise CatalogueError(path, f"has no column {name!r}. {REMEDY}")
        got = schema.field(name).type
        if got != kind:
            raise CatalogueError(path, f"needs {name!r} of type {kind}; got {got}. {REMEDY}")
