"""Labels of slides from a CSV file, and which row belongs to which slide."""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from anlage.errors import CatalogueError
from anlage.slides.catalogue_table import FIXED
from anlage.slides.csv_table import read_csv_table
from anlage.slides.indexing.found_slide import slide_id_of
from anlage.slides.storage.location import is_remote

LOGGER = logging.getLogger(__name__)
PATH_COLUMNS = ("path", "file")
OWN_COLUMNS = ("patient_id", "stain", "tissue", "split")
MEASURED_COLUMNS = set(FIXED) - {"slide_id", "mpp", *OWN_COLUMNS}
MPP_RANGE = (0.01, 1000.0)


@dataclass(frozen=True, slots=True)
class LabelRow:
    """What the labels say about one slide.

    Attributes:
        name: How the row names its slide: its slide_id, or its path as written.
        slide_id: The id it gives the slide; None to take it from the file's name.
        path: The path it gives; None if it has only an id.
        mpp: Resolution to take in place of the file's, micrometres per pixel.
        values: Every other column, empty cells as None.
    """

    name: str
    slide_id: str | None
    path: PurePosixPath | None
    mpp: float | None
    values: Mapping[str, str | None]


class Labels:
    """A labels file, read and checked.

    Attributes:
        source: The CSV file.
        rows: Its rows, in its order.
        columns: Names of the columns beyond those the catalogue has of its own.
        own_columns: Names of those it has of its own: patient_id, stain, tissue, split.
        gives_mpp: Whether there is a column mpp.
    """

    def __init__(
        self,
        source: Path,
        rows: Sequence[LabelRow],
        columns: tuple[str, ...],
        *,
        own_columns: tuple[str, ...],
        gives_mpp: bool,
    ) -> None:
        self.source, self.rows, self.columns = source, rows, columns
        self.own_columns, self.gives_mpp = own_columns, gives_mpp
        self._by_stem: dict[str, list[LabelRow]] = defaultdict(list)
        for row in rows:
            stem = row.name if row.path is None else slide_id_of(row.path.name)
            self._by_stem[stem].append(row)

    def of(self, location: str, *, is_only: bool = True) -> LabelRow | None:
        """The row of a slide: its id is the file's stem, or its path has that stem.

        Where several rows or files share a stem, a row that gives folders means only the files
        that lie in them, and the row whose folders agree furthest with the file's is meant. The
        folders of an absolute path, which may be another machine's, have to agree from the last
        one on; those of a relative path all of them.

        Args:
            location: Absolute path or URL of the slide.
            is_only: No file in another folder has its stem.

        Raises:
            CatalogueError: If two rows agree equally.
        """
        path = PurePosixPath(*_parts(location))
        candidates = self._by_stem.get(slide_id_of(location), [])
        if len(candidates) > 1 or not is_only:
            candidates = [row for row in candidates if _may_mean(row, path)]
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        ranked = sorted(candidates, key=lambda row: _agreement(row, path), reverse=True)
        if _agreement(ranked[0], path) == _agreement(ranked[1], path):
            names = " and ".join(repr(row.name) for row in ranked[:2])
            raise CatalogueError(
                self.source,
                f"rows {names} can both mean {location}. "
                "Give the folders of both in the path column.",
            )
        return ranked[0]


def _parts(location: str) -> Sequence[str]:
    """Folders and name: of the URL "https://b/a%20c.svs" these are "https:", "b" and "a c.svs"."""
    if not is_remote(location):
        return PurePosixPath(location.replace("\\", "/")).parts
    scheme, _, rest = location.partition("://")
    if scheme.lower() in {"http", "https"}:  # keys of buckets are taken as they are
        rest = unquote(rest.partition("?")[0].partition("#")[0])
    return (f"{scheme}:", *PurePosixPath(rest).parts)


def _may_mean(row: LabelRow, path: PurePosixPath) -> bool:
    """Whether the folders that a row gives, if any, are those of the file."""
    folders = [] if row.path is None else [part for part in row.path.parts[:-1] if part != ".."]
    if not folders:
        return True
    shared = _shared_end(folders, path.parent.parts)
    is_absolute = folders[0] == "/" or folders[0].endswith(":")
    return shared == len(folders) or (is_absolute and shared > 0)


def _agreement(row: LabelRow, path: PurePosixPath) -> int:
    """How many trailing parts of the row's path the file's path shares."""
    return 0 if row.path is None else _shared_end(row.path.parts, path.parts)


def _shared_end(ours: Sequence[str], theirs: Sequence[str]) -> int:
    pairs = zip(reversed(ours), reversed(theirs), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def read_labels(path: Path) -> Labels:
    """Read a labels file.

    A row names its slide by ``slide_id``, or by ``path`` (or ``file``), whose stem is then the id;
    with both, the path finds the slide and slide_id names it. Further columns: patient_id, stain,
    tissue (``organ`` is taken for it where there is none), split, mpp (µm per pixel, in place
    of the file's) and any other, kept as text. Empty cells are nulls. Columns that the catalogue
    measures itself are left out, with a logged note.

    Raises:
        CatalogueError: If the file is missing, is not UTF-8 CSV, has no column to find slides by,
            a row without a name, two rows of one slide, an absurd mpp, or a patient on both sides
            of the split.
    """
    header, records = read_csv_table(path)
    finds_by = next((column for column in PATH_COLUMNS if column in header), None)
    if "slide_id" not in header and finds_by is None:
        raise CatalogueError(
            path,
            "needs a column slide_id, path or file to find slides by; "
            f"got {', '.join(header) or 'no header'}. Rename the column that names the slide.",
        )
    measured = sorted(MEASURED_COLUMNS & set(header))
    if measured:
        LOGGER.info("%s: columns %s are measured, not taken from it", path, ", ".join(measured))
    kept = [c for c in header if c not in MEASURED_COLUMNS | {"slide_id", "mpp", finds_by}]
    rename = {"organ": "tissue"} if "organ" in kept and "tissue" not in kept else {}
    rows = []
    for number, record in records:
        values = {rename.get(column, column): record[column] for column in kept}
        rows.append(_label_row(path, number, record, finds_by=finds_by, values=values))
    _refuse_duplicates(path, rows)
    _refuse_patients_on_both_sides(path, rows)
    columns = [rename.get(column, column) for column in kept]
    return Labels(
        path,
        rows,
        tuple(column for column in columns if column not in OWN_COLUMNS),
        own_columns=tuple(column for column in columns if column in OWN_COLUMNS),
        gives_mpp="mpp" in header,
    )


def _label_row(
    path: Path,
    number: int,
    record: Mapping[str, str | None],
    *,
    finds_by: str | None,
    values: Mapping[str, str | None],
) -> LabelRow:
    slide_id = record.get("slide_id")
    file = record[finds_by] if finds_by is not None else None
    name = file or slide_id
    if name is None:
        raise CatalogueError(path, f"line {number} names no slide. Fill in its slide_id or path.")
    where = None if file is None else PurePosixPath(*_parts(file))
    return LabelRow(name, slide_id, where, _mpp(path, name, record.get("mpp")), values)


def _mpp(path: Path, name: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        mpp = float(text)
    except ValueError:
        mpp = math.nan
    if not MPP_RANGE[0] <= mpp <= MPP_RANGE[1]:
        raise CatalogueError(
            path,
            f"{name}: needs mpp from {MPP_RANGE[0]:g} to {MPP_RANGE[1]:g}; got {text!r}. "
            "Give micrometres per pixel, or leave the cell empty.",
        )
    return mpp


def _refuse_duplicates(path: Path, rows: Sequence[LabelRow]) -> None:
    for what, names in (
        ("the slide", [row.name for row in rows]),
        ("slide_id", [row.slide_id for row in rows if row.slide_id is not None]),
    ):
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        if twice:
            raise CatalogueError(
                path, f"has more than one row for {what} {twice[0]!r}. Keep one row a slide."
            )


def _refuse_patients_on_both_sides(path: Path, rows: Sequence[LabelRow]) -> None:
    sides: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        patient, split = row.values.get("patient_id"), row.values.get("split")
        if patient is not None and split is not None:
            sides[patient].add(split)
    leaking = sorted(patient for patient, splits in sides.items() if len(splits) > 1)
    if leaking:
        named = "; ".join(f"{p!r} in {' and '.join(sorted(sides[p]))}" for p in leaking[:5])
        raise CatalogueError(
            path,
            f"{len(leaking)} patients have slides on more than one side of the split: {named}. "
            "Split by patient.",
        )
