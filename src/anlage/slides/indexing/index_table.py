"""The rows of a catalogue from where they come: measured now, measured before, labelled, kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from anlage.errors import CatalogueError
from anlage.slides.catalogue import Catalogue
from anlage.slides.catalogue_table import FIXED, table_schema, write_table
from anlage.slides.indexing.index_plan import Entry
from anlage.slides.indexing.labels import OWN_COLUMNS, Labels

GIVEN = {"slide_id", "uri", *OWN_COLUMNS}
MEASURED = pa.schema([pa.field(n, kind) for n, kind in FIXED.items() if n not in GIVEN])
ROWS_PER_BLOCK = 65_536
ROWS_PER_PIECE = 1024


class MeasuredRows:
    """Measured columns of slides as they come, kept as Arrow tables, which are a tenth of dicts."""

    def __init__(self) -> None:
        self._waiting: list[Mapping[str, Any]] = []
        self._pieces = [MEASURED.empty_table()]
        self._n = 0

    def add(self, row: Mapping[str, Any]) -> int:
        """Take a row; returns its number."""
        self._waiting.append(row)
        if len(self._waiting) == ROWS_PER_PIECE:
            self._settle()
        self._n += 1
        return self._n - 1

    def table(self) -> pa.Table:
        """All rows, in the order in which they came."""
        self._settle()
        return pa.concat_tables(self._pieces)

    def _settle(self) -> None:
        self._pieces.append(pa.Table.from_pylist(self._waiting, schema=MEASURED))
        self._waiting = []


def write_rows(
    output: Path,
    accepted: Sequence[tuple[Entry, int | None]],
    measured: MeasuredRows,
    *,
    earlier: Catalogue | None,
    labels: Labels | None,
) -> None:
    """Write a catalogue's table.

    Args:
        output: The Parquet file.
        accepted: Its slides in order, and the number of each one's measured row; None: the
            earlier row holds.
        measured: Those rows.
        earlier: The catalogue as it was, whose further columns stay.
        labels: What replaces label columns of the slides they name.

    Raises:
        CatalogueError: If a label column has the name of a user's column that holds no text, or the
            labels leave a patient on both sides of the split.
    """
    label_columns = [] if labels is None else [pa.field(c, pa.string()) for c in labels.columns]
    others = {field.name: field for field in label_columns}
    if earlier is not None:
        users = (f for f in earlier.schema if f.name not in FIXED and f.name not in others)
        others = {field.name: pa.field(field.name, field.type) for field in users} | others
    schema = table_schema(others.values())
    parts = (accepted[i : i + ROWS_PER_BLOCK] for i in range(0, len(accepted), ROWS_PER_BLOCK))
    blocks = _blocks(parts, measured.table(), earlier, schema=schema, labels=labels)
    if labels is not None:
        blocks = _refusing_split_patients(blocks, labels)
    try:
        write_table(output, blocks, schema)
    except _UnfitColumnError as error:
        raise CatalogueError(output, str(error)) from error


def _refusing_split_patients(blocks: Iterator[pa.Table], labels: Labels) -> Iterator[pa.Table]:
    """The blocks; after the last, refuse a patient whose new and earlier slides are split apart.

    Raises:
        CatalogueError: If there is one; nothing has been replaced then.
    """
    columns, seen = ["patient_id", "split"], []
    for block in blocks:
        seen.append(block.select(columns).drop_null().group_by(columns).aggregate([]))
        yield block
    pairs = pa.concat_tables(seen).group_by(columns).aggregate([])
    of_patient = pairs.group_by("patient_id").aggregate([("split", "list")])
    is_apart = pc.greater(pc.list_value_length(of_patient["split_list"]), 1)
    apart = of_patient.filter(is_apart).sort_by("patient_id")
    if len(apart):
        named = "; ".join(
            f"{row['patient_id']!r} in {' and '.join(sorted(row['split_list']))}"
            for row in apart.slice(0, 5).to_pylist()
        )
        raise CatalogueError(
            labels.source,
            f"with it {len(apart)} patients have slides on more than one side of the split: "
            f"{named}. Give all slides of a patient one split, those indexed before too.",
        )


class _UnfitColumnError(Exception):
    """A column that is there cannot be continued by the labels."""


def _blocks(
    parts: Iterable[Sequence[tuple[Entry, int | None]]],
    measured: pa.Table,
    earlier: Catalogue | None,
    *,
    schema: pa.Schema,
    labels: Labels | None,
) -> Iterator[pa.Table]:
    """The catalogue's rows part by part; of the earlier ones only those near a part are held."""
    relabelled = set() if labels is None else {*labels.own_columns, *labels.columns}
    for part in parts:
        entries = [entry for entry, _ in part]
        before, rows = _rows_before(earlier, entries)
        sources, n_before = measured, 0
        if before is not None:
            sources = pa.concat_tables([before.select(MEASURED.names).cast(MEASURED), measured])
            n_before = len(before)
        source = [
            row if new is None else n_before + new for row, (_, new) in zip(rows, part, strict=True)
        ]
        columns = dict(zip(MEASURED.names, sources.take(pa.array(source, pa.int64())), strict=True))
        columns["slide_id"] = pa.array([entry.slide_id for entry in entries], pa.string())
        columns["uri"] = pa.array([entry.uri for entry in entries], pa.string())
        for field in schema:
            name = field.name
            if name in columns:
                continue
            column = pa.nulls(len(part), field.type)
            if before is not None and name in before.column_names:
                column = before.column(name).take(pa.array(rows, pa.int64()))
            if name in relabelled:
                column = _relabelled(name, column, entries)
            columns[name] = column
        columns["patient_id"] = pc.coalesce(columns["patient_id"], columns["slide_id"])
        yield pa.table(columns)


def _rows_before(
    earlier: Catalogue | None, entries: Sequence[Entry]
) -> tuple[pa.Table | None, list[int | None]]:
    """Rows of the earlier catalogue that hold all of some entries', and each one's place there."""
    known = [entry.earlier for entry in entries if entry.earlier is not None]
    if earlier is None or not known:
        return None, [None] * len(entries)
    first = min(known)
    places = [None if entry.earlier is None else entry.earlier - first for entry in entries]
    return earlier.rows_between(first, max(known) + 1), places


def _relabelled(name: str, column: pa.Array, entries: Sequence[Entry]) -> pa.Array:
    """A label column: what the labels say of those they name, what was there for the others."""
    is_labelled = pa.array([entry.label is not None for entry in entries])
    values = [None if e.label is None else e.label.values.get(name) for e in entries]
    try:
        was = column.cast(pa.string())
    except pa.ArrowException as error:
        message = (
            f"has a column {name!r} of {column.type}, which the labels' {name!r} cannot continue. "
            "Rename one of them."
        )
        raise _UnfitColumnError(message) from error
    return pc.if_else(is_labelled, pa.array(values, pa.string()), was)
