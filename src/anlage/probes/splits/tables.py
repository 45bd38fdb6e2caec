"""Splits as a table that other programs read: one row a patient or slide, one column a fold."""

# Shape suffixes: N rows of the data (tiles), R rows of the table (keys).

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anlage.probes.checks import labels_of
from anlage.probes.splits.fixed import given_folds
from anlage.probes.splits.split import SIDES, Split, group_name

KEY_COLUMNS = ("slide_id", "patient_id", "case_id", "case", "patient", "group", "id", "file")
WIDE = "fold_"
LEFT_OUT = ("", "none", "nan")


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitTable:
    """Sides of keys (patients or slides), in one of three forms.

    Attributes:
        key_column: Name of the column of keys.
        keys: Keys, each once, sorted.
        columns: Values of each key by column. Either ``fold_0``, ``fold_1`` ... with ``train``,
            ``val``, ``test`` or nothing (Patho-Bench's form), or one column ``split`` of the same
            values, or one column ``fold`` of the fold that tests the key.
    """

    key_column: str
    keys: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]]

    @property
    def text(self) -> str:
        """The table as CSV: rows sorted by key, sides as ``train``, ``val``, ``test``."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([self.key_column, *self.columns])
        writer.writerows(zip(self.keys, *self.columns.values(), strict=True))
        return file.getvalue()

    @property
    def sha256(self) -> str:
        """SHA-256 of ``text``: the same for the same keys, splits and names in whatever file."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def parse_split_table(text: str, *, key_column: str | None = None) -> SplitTable:
    """Read the text of a CSV, or a TSV as Patho-Bench's ``k=all.tsv``; other columns are ignored.

    Args:
        text: The table, with a header.
        key_column: Column that names patients or slides; by default the first that is there of
            slide_id, patient_id, case_id, case, patient, group, id, file.

    Raises:
        ValueError: If a column is missing, a key is empty or twice there, or a side has no known
            name.
    """
    rows = _rows(text)
    key_column = _key_column(list(rows[0]), key_column)
    names = _fold_columns(list(rows[0]))
    keys = [row[key_column] for row in rows]
    _refuse_keys(key_column, keys)
    order = sorted(range(len(keys)), key=lambda number: keys[number])
    return SplitTable(
        key_column=key_column,
        keys=tuple(keys[number] for number in order),
        columns={
            name: tuple(_value(name, keys[number], rows[number][name]) for number in order)
            for name in names
        },
    )


def splits_from_table(
    table: SplitTable, key_N: ArrayLike, group_N: ArrayLike, *, is_exact: bool = True
) -> list[Split]:
    """Splits of rows from the sides of their keys.

    Args:
        table: The table.
        key_N: (N,) key of each row: its patient or slide, as the table names them.
        group_N: (N,) patient of each row (``key_N`` once more where keys are patients).
        is_exact: Whether the table and the rows must name the same keys. Otherwise rows without a
            key in the table are on no side, and keys without rows are ignored.

    Returns:
        One split a ``fold_`` column in the order of the table, named without ``fold_``; one a fold
        of a ``fold`` column, sorted; or the one of a ``split`` column, named ``test``.

    Raises:
        ValueError: If keys are missing or unknown, a patient is on two sides, or a side is empty.
    """
    group = labels_of("splits_from_table", "groups", group_N)
    key = _names(labels_of("splits_from_table", "keys", key_N, n_rows=len(group)))
    if is_exact:
        _refuse_other_keys(table, key)
    place = {name: number for number, name in enumerate(table.keys)}
    place_N = np.array([place.get(name, -1) for name in key.tolist()])
    splits = []
    for name, values in table.columns.items():
        value_N = np.where(place_N < 0, "", np.array(values, dtype=str)[place_N])
        splits += _splits_of_column(name, value_N, group)
    return splits


def splits_to_table(
    splits: Sequence[Split], key_N: ArrayLike, *, key_column: str = "patient_id"
) -> SplitTable:
    """The table of splits, one ``fold_`` column a split; ``splits_from_table`` undoes it.

    Columns are sorted by name, numbers as numbers, so that order is lost where it was another.

    Args:
        splits: Splits of the same rows, with different names.
        key_N: (N,) patient or slide of each row.
        key_column: Name of the column of keys.

    Raises:
        ValueError: If a key is on two sides of a split, or two splits have one name.
    """
    key = labels_of("splits_to_table", "keys", key_N)
    names = [split.name for split in splits]
    if not names or len(set(names)) < len(names):
        msg = f"splits_to_table: needs splits of different names; got {names}. Rename them."
        raise ValueError(msg)
    keys, code_N = np.unique(_names(key), return_inverse=True)
    columns = {}
    for split in sorted(splits, key=lambda split: _natural(WIDE + split.name)):
        split.refuse_cut_groups(key)
        side_R = np.full(len(keys), "", dtype="<U5")
        for side, rows in split.sides.items():
            side_R[code_N[rows]] = side
        columns[WIDE + split.name] = tuple(side_R.tolist())
    return SplitTable(key_column=key_column, keys=tuple(keys.tolist()), columns=columns)


def _names(key_N: NDArray[Any]) -> NDArray[np.str_]:
    return np.array([group_name(key) for key in key_N.tolist()], dtype=str)


def _rows(text: str) -> list[dict[str, str]]:
    text = text.removeprefix("\ufeff")
    delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
    rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, restval=""))
    if not rows:
        msg = "split table: needs a header and rows; got none. Write one row a patient or slide."
        raise ValueError(msg)
    if any(None in row for row in rows):
        msg = (
            "split table: needs as many values as columns in each row; got more in one. "
            "Quote values that hold the separator."
        )
        raise ValueError(msg)
    return [{name: value.strip() for name, value in row.items()} for row in rows]


def _key_column(header: list[str], key_column: str | None) -> str:
    named = [key_column] if key_column else list(KEY_COLUMNS)
    for name in named:
        if name in header:
            return name
    msg = (
        f"split table: needs a column of patients or slides, {' or '.join(named)}; got "
        f"{', '.join(header)}. Name the one that there is."
    )
    raise ValueError(msg)


def _fold_columns(header: list[str]) -> list[str]:
    wide = [name for name in header if name.startswith(WIDE)]
    if wide:
        return sorted(wide, key=_natural)
    single = [name for name in header if name in {"fold", "split"}]
    if len(single) != 1:
        msg = (
            "split table: needs columns fold_0, fold_1 ..., or one column fold or split; got "
            f"{', '.join(header)}. Rename or drop columns."
        )
        raise ValueError(msg)
    return single


def _natural(name: str) -> tuple[list[tuple[str, int]], str]:
    """So that fold_10 comes after fold_9; the name itself decides between fold_1 and fold_01."""
    return [(word, int(part or 0)) for word, part in re.findall(r"(\D*)(\d*)", name)], name


def _refuse_keys(key_column: str, keys: list[str]) -> None:
    if "" in keys:
        msg = (
            f"split table: needs a {key_column} in each row; got none in row "
            f"{keys.index('') + 1}. Fill it in, or drop the row."
        )
        raise ValueError(msg)
    twice = sorted(key for key, count in Counter(keys).items() if count > 1)
    if twice:
        msg = (
            f"split table: needs each {key_column} in one row; got {len(twice)} in several, such "
            f"as {', '.join(twice[:3])}. Drop the rest, or name the column of slides as the key."
        )
        raise ValueError(msg)


def _value(column: str, key: str, value: str) -> str:
    if value.lower() in LEFT_OUT:
        return ""
    if column == "fold":
        return value
    side = SIDES.get(value.lower())
    if side is None:
        msg = (
            f"split table: {column} needs train, val, test or nothing; got {value!r} for {key}. "
            "Rename the value, or name the column fold if it holds numbers of folds."
        )
        raise ValueError(msg)
    return side


def _refuse_other_keys(table: SplitTable, key: NDArray[np.str_]) -> None:
    here, there = set(key.tolist()), set(table.keys)
    for names, whose in ((here - there, "the table lacks"), (there - here, "the data lacks")):
        if names:
            msg = (
                f"splits_from_table: needs the {table.key_column}s of the data and of the table to "
                f"be the same; got {len(names)} that {whose}, such as "
                f"{', '.join(sorted(names)[:3])}. Complete it, name another key column, or leave "
                "these out with is_exact=False."
            )
            raise ValueError(msg)


def _splits_of_column(
    name: str, value_N: NDArray[np.str_], group: NDArray[np.generic]
) -> list[Split]:
    if name == "fold":
        row = np.flatnonzero(value_N != "")
        folds = given_folds(value_N[row], group[row])
        return [Split(name=f.name, train=row[f.train], test=row[f.test]) for f in folds]
    split = Split(
        name="test" if name == "split" else name.removeprefix(WIDE),
        train=np.flatnonzero(value_N == "train"),
        test=np.flatnonzero(value_N == "test"),
        validation=np.flatnonzero(value_N == "val"),
    )
    split.refuse_cut_groups(group)
    return [split]
