"""Tables of text that people make: CSV or TSV, read strictly, errors by line."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

from anlage.errors import CatalogueError

SEPARATORS = (",", ";", "\t")

Record = dict[str, str | None]


def read_csv_table(
    path: Path, *, separators: tuple[str, ...] = (",",)
) -> tuple[list[str], list[tuple[int, Record]]]:
    """Read a table: its first line is the header.

    Args:
        path: UTF-8 text.
        separators: Marks that may stand between cells; the first of them in the header is meant.

    Returns:
        Names of the columns; and the rows with their line numbers, cells stripped, empty ones None.
        Lines without any text are left out.

    Raises:
        CatalogueError: If the file cannot be read, is no such table, has a column twice, or a row
            with more or fewer cells than the header.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            mark = next((mark for mark in separators if mark in first), separators[0])
            file.seek(0)
            reader = csv.reader(file, strict=True, delimiter=mark)
            header = [name.strip() for name in next(reader, [])]
            lines = [(reader.line_num, cells) for cells in reader if any(cells)]
    except OSError as error:
        raise CatalogueError(path, f"cannot be read: {error.strerror}. Check the path.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise CatalogueError(path, f"is not UTF-8 CSV: {error}. Export it again.") from error
    _refuse_header(path, header, separators)
    for number, cells in lines:
        if len(cells) != len(header):
            raise CatalogueError(
                path,
                f"line {number} needs {len(header)} cells as the header has; got {len(cells)}. "
                "Put cells that hold commas in quotes.",
            )
    stripped = ((number, (cell.strip() or None for cell in cells)) for number, cells in lines)
    return header, [(number, dict(zip(header, cells, strict=True))) for number, cells in stripped]


def _refuse_header(path: Path, header: list[str], separators: tuple[str, ...]) -> None:
    others = [mark for mark in SEPARATORS if mark not in separators]
    found = next((mark for mark in others if len(header) == 1 and mark in header[0]), None)
    if found is not None:
        message = f"needs commas between its cells; got {found!r}. Export it again with commas."
        raise CatalogueError(path, message)
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise CatalogueError(path, f"has column {twice[0]!r} more than once. Rename one.")
