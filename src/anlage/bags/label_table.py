"""A table of labels as columns of text, one row a slide or a patient, whatever the file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from anlage.errors import CatalogueError
from anlage.slides.catalogue import Catalogue
from anlage.slides.catalogue_table import FIXED, FORMAT_KEY
from anlage.slides.csv_table import read_csv_table

MISSING = frozenset({"", "nan", "na", "n/a", "null", "<na>"})
LABELS_OF_CATALOGUES = frozenset({"slide_id", "patient_id", "stain", "tissue", "split"})

Text = str | None


@dataclass(frozen=True, slots=True)
class LabelTable:
    """Rows of one key each.

    Attributes:
        path: The file.
        key: Name of the column of keys.
        keys: The keys, each once, in the order of the file.
        columns: Values of each, None where missing.
        conflicts: Columns in which rows of one key have different values, with the reason.
    """

    path: Path
    key: str
    keys: tuple[str, ...]
    columns: Mapping[str, tuple[Text, ...]]
    conflicts: Mapping[str, str] = field(default_factory=dict)

    def column(self, name: str) -> tuple[Text, ...]:
        """A column's values.

        Raises:
            CatalogueError: If there is no such column, or it contradicts itself.
        """
        if name not in self.columns:
            known = ", ".join(self.columns)
            raise CatalogueError(self.path, f"needs a column {name!r}; got {known}. Rename one.")
        if name in self.conflicts:
            raise CatalogueError(self.path, self.conflicts[name])
        return self.columns[name]

    def rows(self, numbers: Sequence[int], *, key: str, keys: Sequence[str]) -> LabelTable:
        """The rows of these numbers, under other keys."""
        columns = {k: tuple(v[number] for number in numbers) for k, v in self.columns.items()}
        return LabelTable(self.path, key, tuple(keys), columns, self.conflicts)


def read_label_table(path: Path, *, keys: Iterable[str]) -> LabelTable:
    """Read a CSV, a TSV, a Parquet file or a catalogue.

    Values are text: of Parquet, whole numbers have no point and truth values are ``true`` and
    ``false``. Missing are empty cells, nulls, and NaN, NA, N/A and null in any case. Of a catalogue
    the columns that it measured itself are left out. Rows that say the same of a key are one.

    Args:
        path: The file; ``.parquet`` is Parquet, all else text.
        keys: Names of columns of keys; the first that is there is meant.

    Raises:
        CatalogueError: If the file cannot be read, has none of the columns, no rows, or a row
            without a key.
    """
    is_parquet = path.suffix.lower() == ".parquet"
    columns = _of_parquet(path) if is_parquet else _of_text(path)
    key = next((name for name in keys if name in columns), None)
    if key is None:
        wanted, known = " or ".join(keys), ", ".join(columns)
        msg = f"needs a column of slides or patients ({wanted}); got {known}. Rename one."
        raise CatalogueError(path, msg)
    if not columns[key]:
        raise CatalogueError(path, "needs labels; got none below its header. Add rows.")
    first_row: dict[str, int] = {}
    conflicts: dict[str, str] = {}
    for row, name in enumerate(columns[key]):
        if name is None:
            raise CatalogueError(path, f"row {row + 1} has no {key}. Fill it in, or drop the row.")
        first = first_row.setdefault(name, row)
        if first != row:
            conflicts = _conflicts(columns, (first, row), f"{key} {name!r}") | conflicts
    chosen = {k: tuple(v[row] for row in first_row.values()) for k, v in columns.items()}
    return LabelTable(path, key, tuple(first_row), chosen, conflicts)


def _conflicts(
    columns: Mapping[str, Sequence[Text]], rows: tuple[int, int], named: str
) -> dict[str, str]:
    found = {}
    for name, column in columns.items():
        one, other = (column[row] for row in rows)
        if one != other:
            msg = f"gives {named} two values of {name}: {one!r} and {other!r}. Keep one row."
            found[name] = msg
    return found


def _of_text(path: Path) -> dict[str, list[Text]]:
    header, lines = read_csv_table(path, separators=("\t", ","))
    return {name: [_present(record[name]) for _, record in lines] for name in header}


def _of_parquet(path: Path) -> dict[str, list[Text]]:
    try:
        schema = pq.read_schema(path)
        is_catalogue = FORMAT_KEY in (schema.metadata or {})
        if is_catalogue:
            Catalogue.open(path)
        names = [
            field.name
            for field in schema
            if not (is_catalogue and field.name in FIXED.keys() - LABELS_OF_CATALOGUES)
            and not pa.types.is_nested(field.type)
            and not pa.types.is_binary(field.type)
        ]
        table = pq.read_table(path, columns=names)
    except (OSError, pa.ArrowException) as error:
        raise CatalogueError(path, f"cannot be read as Parquet ({error}). Check it.") from error
    return {name: [_text(value) for value in table[name].to_pylist()] for name in names}


def _text(value: Any) -> Text:  # noqa: ANN401 - of any column
    if value is None:
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return _present(str(value).strip())


def _present(text: Text) -> Text:
    return None if text is None or text.lower() in MISSING else text
