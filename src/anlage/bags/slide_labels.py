"""Labels of slides from a table or a catalogue: whose they are, where from, what is known.

Shape suffixes: N slides.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from anlage.errors import CatalogueError
from anlage.provenance import sha256_of_json

PATIENT_COLUMNS = ("patient_id", "case_id", "case", "patient")
MISSING = frozenset({"", "nan", "na", "n/a", "null", "<na>"})
Text = str | None


@dataclass(frozen=True, slots=True, eq=False)
class SlideLabels:
    """What is known of slides, one row a slide.

    Attributes:
        path: The table.
        slide_ids: The slides, N of them, in the order of the table.
        patient_of: Whose each slide is; the slide itself where nobody said.
        site_of: Where each slide is from; without those of which nobody said it.
        values: Columns as text, None where a value is missing.
    """

    path: Path
    slide_ids: tuple[str, ...]
    patient_of: Mapping[str, str]
    site_of: Mapping[str, str]
    values: Mapping[str, tuple[Text, ...]] = field(repr=False)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        slides: str | Path | None = None,
        patient: str | None = None,
        site: str | None = None,
    ) -> SlideLabels:
        """Read labels.

        Args:
            path: CSV, TSV, Parquet or a catalogue, with a column slide_id; or with one of
                patients, whose slides ``slides`` names.
            slides: Catalogue or table of slide_id and patient_id, where ``path`` is of patients.
            patient: Column of patients, if it is not patient_id, case_id, case or patient.
            site: Column of sites, if it is not ``site``.

        Raises:
            CatalogueError: If the table cannot be read, names no slides, or contradicts itself.
        """
        path = Path(path)
        columns = _table(path)
        patient = _patient_column(path, columns, patient)
        if "slide_id" not in columns:
            columns = _by_slide(path, columns, patient, slides)
        columns = _one_row_a_slide(path, columns)
        slide_ids = tuple(str(name) for name in columns["slide_id"])
        patients = columns.get(patient or "", [None] * len(slide_ids))
        sites = columns.get(site or "site", [None] * len(slide_ids))
        if site is not None and site not in columns:
            raise _no_column(path, site, columns)
        return cls(
            path,
            slide_ids,
            {s: p or s for s, p in zip(slide_ids, patients, strict=True)},
            {s: w for s, w in zip(slide_ids, sites, strict=True) if w is not None},
            {k: tuple(v) for k, v in columns.items() if k != "slide_id"},
        )

    def __len__(self) -> int:
        return len(self.slide_ids)

    def column(self, name: str) -> tuple[Text, ...]:
        """A column as text, one value a slide in the order of ``slide_ids``; None where missing.

        Raises:
            CatalogueError: If there is no such column.
        """
        if name not in self.values:
            raise _no_column(self.path, name, self.values)
        return self.values[name]

    def numbers(self, name: str) -> NDArray[np.float64]:
        """A column as numbers, (N,) float64, NaN where missing; true and false are 1 and 0.

        Raises:
            CatalogueError: If there is no such column, or a value is no finite number.
        """
        found = [self._number(name, *pair) for pair in enumerate(self.column(name))]
        return np.array(found, dtype=np.float64)

    def _number(self, name: str, row: int, text: Text) -> float:
        if text is None:
            return np.nan
        try:
            value = {"true": 1.0, "false": 0.0}.get(text.lower())
            value = float(text) if value is None else value
        except ValueError:
            value = np.nan
        if not np.isfinite(value):
            msg = f"needs numbers in {name!r}; got {text!r} for slide {self.slide_ids[row]!r}."
            raise CatalogueError(self.path, f"{msg} Correct it, or leave it empty.")
        return value

    def select(self, slide_ids: Sequence[str]) -> SlideLabels:
        """The labels of these slides, in their order.

        Raises:
            CatalogueError: If one has no row.
        """
        row_of = {slide_id: row for row, slide_id in enumerate(self.slide_ids)}
        lost = [slide_id for slide_id in slide_ids if slide_id not in row_of]
        if lost:
            msg = f"has no row for {len(lost)} slides, such as {', '.join(lost[:3])}. Add them."
            raise CatalogueError(self.path, msg)
        rows = [row_of[slide_id] for slide_id in slide_ids]
        return SlideLabels(
            self.path,
            tuple(slide_ids),
            {s: self.patient_of[s] for s in slide_ids},
            {s: self.site_of[s] for s in slide_ids if s in self.site_of},
            {name: tuple(column[row] for row in rows) for name, column in self.values.items()},
        )

    def absent_from(self, slide_ids: Collection[str]) -> list[str]:
        """Slides that are labelled here and not among those."""
        there = set(slide_ids)
        return [slide_id for slide_id in self.slide_ids if slide_id not in there]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over slides, patients, sites and values, whatever the order and the format."""
        names = sorted(self.values)
        rows = sorted(
            [s, self.patient_of[s], self.site_of.get(s), *(self.values[n][row] for n in names)]
            for row, s in enumerate(self.slide_ids)
        )
        return sha256_of_json([names, rows])


def _table(path: Path) -> dict[str, list[Text]]:
    """A table's columns as text."""
    try:
        if path.suffix.lower() == ".parquet":
            table = pq.read_table(path)
        else:
            mark = "\t" if "\t" in path.read_text(encoding="utf-8-sig").partition("\n")[0] else ","
            names = path.read_text(encoding="utf-8-sig").partition("\n")[0].strip().split(mark)
            table = pa_csv.read_csv(
                path,
                parse_options=pa_csv.ParseOptions(delimiter=mark),
                convert_options=pa_csv.ConvertOptions(
                    column_types={name.strip('"'): pa.string() for name in names}
                ),
            )
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise CatalogueError(path, f"cannot be read as a table ({error}). Check it.") from error
    flat = [name for name in table.column_names if not pa.types.is_nested(table[name].type)]
    return {name: [_text(value) for value in table[name].to_pylist()] for name in flat}


def _text(value: Any) -> Text:  # noqa: ANN401 - of any column
    text = "" if value is None else str(value).strip()
    return None if text.lower() in MISSING else text


def _patient_column(
    path: Path, columns: Mapping[str, Sequence[Text]], patient: str | None
) -> str | None:
    if patient is not None and patient not in columns:
        raise _no_column(path, patient, columns)
    return patient or next((name for name in PATIENT_COLUMNS if name in columns), None)


def _by_slide(
    path: Path,
    columns: Mapping[str, list[Text]],
    patient: str | None,
    slides: str | Path | None,
) -> dict[str, list[Text]]:
    if patient is None:
        raise _no_column(path, "slide_id", columns)
    if slides is None:
        msg = "is of patients, not slides. Name the catalogue or table that gives them slides."
        raise CatalogueError(path, msg)
    rows = {name: row for row, name in enumerate(columns[patient])}
    owners = SlideLabels.open(slides).patient_of
    found = [(s, rows[p]) for s, p in owners.items() if p in rows]
    by_slide: dict[str, list[Text]] = {"slide_id": [s for s, _ in found]}
    return by_slide | {k: [v[row] for _, row in found] for k, v in columns.items()}


def _one_row_a_slide(path: Path, columns: dict[str, list[Text]]) -> dict[str, list[Text]]:
    seen: dict[Text, int] = {}
    for row, slide_id in enumerate(columns["slide_id"]):
        if slide_id is None:
            raise CatalogueError(path, f"row {row + 1} names no slide. Fill in its slide_id.")
        first = seen.setdefault(slide_id, row)
        for name, column in columns.items():
            if column[row] != column[first]:
                msg = f"gives slide {slide_id!r} {name} {column[first]!r} and {column[row]!r}."
                raise CatalogueError(path, f"{msg} Keep one.")
    return {name: [column[row] for row in seen.values()] for name, column in columns.items()}


def _no_column(path: Path, name: str, columns: Mapping[str, Any]) -> CatalogueError:
    return CatalogueError(path, f"needs a column {name!r}; got {', '.join(columns)}. Rename one.")
