"""Labelled tiles as files: a CSV, or a folder with one folder a class."""

# Shape suffixes: N tiles.

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anlage.errors import LabelledDataError
from anlage.probes.splits.split import groups_on_two_sides
from anlage.provenance import sha256_of_json

GROUP_COLUMNS = ("patient_id", "case", "group")
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"})
SIDE_NAMES = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
BY_FILE = "file"

Row = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class LabelledTiles:
    """Tiles with a class and a group each.

    Attributes:
        path: The CSV or the folder.
        file_N: Paths of the tiles, relative to the CSV's folder or to the folder, or absolute.
        label_N: (N,) class of each tile, str.
        group_N: (N,) group of each tile, str; tiles of one group are never split.
        group_column: Column the groups come from; ``file`` when nothing says which tiles share a
            case, so that each tile is a group of its own.
        fold_N: (N,) fold of each tile, str, where the CSV has a ``fold`` column.
        side_N: (N,) ``train`` or ``test``, str, where the CSV has a ``split`` column.
        mpp_N: (N,) micrometres per pixel of each tile, float64, NaN where it is not known.
    """

    path: Path
    file_N: tuple[str, ...]
    label_N: NDArray[np.str_]
    group_N: NDArray[np.str_]
    group_column: str
    fold_N: NDArray[np.str_] | None
    side_N: NDArray[np.str_] | None
    mpp_N: NDArray[np.float64]

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        label: str = "label",
        group: str | None = None,
        where: Mapping[str, str] | None = None,
        mpp: float | None = None,
    ) -> LabelledTiles:
        """Read which tiles there are and check all that can be checked without decoding them.

        Two tiles of a group may have different labels.

        Args:
            path: A CSV with columns ``file``, the label, and if known ``patient_id``, ``case`` or
                ``group`` (the first of these that is there is the group), ``fold``, ``split``,
                ``mpp``; or a folder with one folder of images a class.
            label: Column of the class.
            group: Column of the group, where it has another name.
            where: Columns and the values they need to have; other rows are left out.
            mpp: Resolution of tiles for which the CSV has none, micrometres per pixel.

        Raises:
            LabelledDataError: If a column, a file, a label or a group is missing, a file is named
                twice, an mpp is no positive number, a group is in two folds, or there is only
                one class.
        """
        path = Path(path)
        if path.is_dir():
            label = "label"  # of the rows made from the folders
        found = _rows_of_folder(path) if path.is_dir() else _rows_of_csv(path)
        rows = _selected(path, found, where or {})
        group_column = _group_column(path, rows[0], group)
        _refuse_gaps(path, rows, ["file", label, group_column])
        tiles = cls(
            path=path,
            file_N=tuple(row["file"] for row in rows),
            label_N=np.array([row[label] for row in rows]),
            group_N=np.array([row[group_column] for row in rows]),
            group_column=group_column,
            fold_N=_optional(path, rows, "fold"),
            side_N=_optional(path, rows, "split"),
            mpp_N=_mpp(path, rows, mpp),
        )
        _check(tiles)
        return tiles

    def __len__(self) -> int:
        """How many tiles there are."""
        return len(self.file_N)

    @property
    def folder(self) -> Path:
        """Folder that relative file names start from."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def is_grouped(self) -> bool:
        """Whether anything says which tiles share a case."""
        return self.group_column != BY_FILE

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over each tile's name, size in bytes, label, group, fold, side and mpp.

        Pixels are not hashed: a tile replaced by another of the same size goes unseen.
        """
        size_N = [(self.folder / file).stat().st_size for file in self.file_N]
        mpp_N = [None if np.isnan(mpp) else mpp for mpp in self.mpp_N.tolist()]
        columns: list[Any] = [self.file_N, size_N, mpp_N]
        for values in (self.label_N, self.group_N, self.fold_N, self.side_N):
            columns += [None if values is None else values.tolist()]
        return sha256_of_json(columns)


def _rows_of_csv(path: Path) -> list[Row]:
    if not path.is_file():
        raise LabelledDataError(path, "does not exist. Name a CSV or a folder of class folders.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, restval=""))
    except (UnicodeDecodeError, csv.Error) as error:
        raise LabelledDataError(path, f"is no UTF-8 CSV: {error}. Save it as one.") from error
    too_long = [number for number, row in enumerate(rows, start=2) if None in row]
    if too_long:
        message = f"needs as many values as columns in each row; got more in row {too_long[0]}"
        raise LabelledDataError(path, f"{message}. Quote values that hold a comma.")
    return [{key: value.strip() for key, value in row.items()} for row in rows]


def _rows_of_folder(path: Path) -> list[Row]:
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    loose = [entry.name for entry in entries if entry.suffix.lower() in IMAGE_SUFFIXES]
    if loose:
        message = f"needs each image in a folder named after its class; got {loose[0]} beside them"
        raise LabelledDataError(path, f"{message}. Move or remove it.")
    classes = [entry for entry in entries if entry.is_dir()]
    if classes and {folder.name.lower() for folder in classes} <= SIDE_NAMES:
        names = ", ".join(folder.name for folder in classes)
        message = f"needs folders named after classes; got sides of a split ({names})"
        raise LabelledDataError(path, f"{message}. Write a CSV of file, label, split.")
    return [
        {"file": str(file.relative_to(path)), "label": folder.name}
        for folder in classes
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
    ]


def _selected(path: Path, rows: Sequence[Row], where: Mapping[str, str]) -> Sequence[Row]:
    if not rows:
        raise LabelledDataError(path, "needs labelled tiles; got none. Add some.")
    for column in where:
        if column not in rows[0]:
            raise _no_column(path, column, rows[0])
    chosen = [row for row in rows if all(row[key] == value for key, value in where.items())]
    if not chosen:
        message = f"needs labelled tiles; got {len(rows)} rows, none chosen by {dict(where)}"
        raise LabelledDataError(path, f"{message}. Add rows, or choose others.")
    return chosen


def _group_column(path: Path, row: Row, group: str | None) -> str:
    if group is not None:
        if group not in row:
            raise _no_column(path, group, row)
        return group
    return next((column for column in GROUP_COLUMNS if column in row), BY_FILE)


def _refuse_gaps(path: Path, rows: Sequence[Row], columns: Sequence[str]) -> None:
    for column in columns:
        if column not in rows[0]:
            raise _no_column(path, column, rows[0])
        gaps = [number for number, row in enumerate(rows) if not row[column]]
        if gaps:
            row = rows[gaps[0]]
            named = row["file"] or f"row {gaps[0] + 1} of those chosen"
            message = f"needs a {column} for each tile; got none for {len(gaps)}, such as {named}"
            raise LabelledDataError(path, f"{message}. Fill it in, or drop the row.")


def _optional(path: Path, rows: Sequence[Row], column: str) -> NDArray[np.str_] | None:
    if column not in rows[0]:
        return None
    _refuse_gaps(path, rows, [column])
    return np.array([row[column] for row in rows])


def _mpp(path: Path, rows: Sequence[Row], mpp: float | None) -> NDArray[np.float64]:
    values = []
    for row in rows:
        text = row.get("mpp") or ("nan" if mpp is None else str(mpp))
        try:
            value = float(text)
        except ValueError:
            value = -1
        if value <= 0 or np.isinf(value):
            message = f"needs an mpp in micrometres per pixel, > 0; got {text!r} for {row['file']}"
            raise LabelledDataError(path, f"{message}. Correct it, or leave it empty.")
        values.append(value)
    return np.array(values, dtype=np.float64)


def _check(tiles: LabelledTiles) -> None:
    classes = np.unique(tiles.label_N)
    if len(classes) < 2:
        message = f"needs tiles of two classes or more; got only {str(classes[0])!r}"
        raise LabelledDataError(tiles.path, f"{message}. Add tiles of another class.")
    plain = [os.path.normpath(file) for file in tiles.file_N]  # ./a.png is a.png
    name, count = np.unique(plain, return_counts=True)
    if count.max() > 1:
        message = f"needs each file once; got {name[count.argmax()]} {count.max()} times"
        raise LabelledDataError(tiles.path, f"{message}. Keep one row of it.")
    missing = [file for file in tiles.file_N if not (tiles.folder / file).is_file()]
    if missing:
        message = f"needs every file it names; got {len(missing)} missing, such as {missing[0]}"
        where = "File names are relative to the folder of the CSV"
        raise LabelledDataError(tiles.path, f"{message}. {where}: correct them or drop the rows.")
    for column, side_N in (("fold", tiles.fold_N), ("split", tiles.side_N)):
        cut = [] if side_N is None else groups_on_two_sides(tiles.group_N, side_N)
        if cut:
            message = (
                f"needs each {tiles.group_column} in one {column} only; got {len(cut)} in two, "
                f"such as {cut[0]}"
            )
            raise LabelledDataError(tiles.path, f"{message}. Move all its tiles to one {column}.")


def _no_column(path: Path, column: str, row: Row) -> LabelledDataError:
    message = f"needs a column {column!r}; got {', '.join(row)}. Rename one, or name another."
    return LabelledDataError(path, message)
