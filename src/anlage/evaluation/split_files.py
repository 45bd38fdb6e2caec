"""Splits as files: read by the patients or slides of the data, written whole, hashed."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from numpy.typing import ArrayLike

from anlage.errors import LabelledDataError
from anlage.files import write_text_whole
from anlage.probes.splits.split import Split
from anlage.probes.splits.tables import parse_split_table, splits_from_table, splits_to_table


def read_splits(
    path: str | Path,
    key_N: ArrayLike,
    group_N: ArrayLike,
    *,
    key_column: str | None = None,
    is_exact: bool = True,
) -> tuple[list[Split], str]:
    """Read splits of rows from a CSV or TSV of patients or slides.

    Args:
        path: Table with columns ``fold_0`` ... of train / val / test (Patho-Bench's form), or one
            column ``split`` of them, or one column ``fold``.
        key_N: (N,) key of each row of the data, as the table names patients or slides.
        group_N: (N,) patient of each row.
        key_column: Column of keys in the table; by default slide_id, patient_id, case_id ...
        is_exact: Whether table and data must name the same keys; otherwise what only one has is
            left out.

    Returns:
        The splits, and the SHA-256 of the table in its canonical form: the same for the same
        split, whatever the order of rows, the separator and the other columns.

    Raises:
        LabelledDataError: If the file is missing or no such table, a key is unknown, missing or
            twice there, a patient is on two sides, or a side is empty.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        table = parse_split_table(text, key_column=key_column)
        return splits_from_table(table, key_N, group_N, is_exact=is_exact), table.sha256
    except FileNotFoundError as error:
        raise LabelledDataError(path, "does not exist. Name a CSV or TSV of splits.") from error
    except OSError as error:
        message = f"cannot be read: {error.strerror}. Name a CSV or TSV of splits."
        raise LabelledDataError(path, message) from error
    except (UnicodeDecodeError, csv.Error) as error:
        message = f"is no UTF-8 CSV or TSV: {error}. Save it as one."
        raise LabelledDataError(path, message) from error
    except ValueError as error:
        raise LabelledDataError(path, str(error)) from error


def write_splits(
    path: str | Path,
    splits: Sequence[Split],
    key_N: ArrayLike,
    *,
    key_column: str = "patient_id",
) -> str:
    """Write splits as a CSV of one row a patient or slide, whole or not at all.

    Returns:
        SHA-256 of the file, which ``read_splits`` gives again.

    Raises:
        ValueError: If a key is on two sides of a split, or two splits have one name.
    """
    table = splits_to_table(splits, key_N, key_column=key_column)
    write_text_whole(path, table.text)
    return table.sha256
