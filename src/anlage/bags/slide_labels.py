"""Labels of slides: whose they are, where they come from, and what is known of them.

Shape suffixes: N slides.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from anlage.bags.label_table import LabelTable, Text, read_label_table
from anlage.bags.tcga_ids import tcga_patient, tcga_site
from anlage.errors import CatalogueError
from anlage.provenance import sha256_of_json

LOGGER = logging.getLogger(__name__)
SLIDE, SITE = "slide_id", "site"
PATIENT_COLUMNS = ("patient_id", "case_id", "case", "patient")
TRUTH = {"true": "1", "false": "0"}

Ids = Literal["tcga"]


@dataclass(frozen=True, eq=False)
class SlideLabels:
    """What is known of slides, one row a slide.

    Attributes:
        path: The table.
        slide_ids: The slides, N of them, in the order of the table.
        patient_of: Whose each slide is; the slide itself where nobody said.
        site_of: Where each slide is from; without those of which nobody said it.
        table: The columns.
    """

    path: Path
    slide_ids: tuple[str, ...]
    patient_of: Mapping[str, str]
    site_of: Mapping[str, str]
    table: LabelTable = field(repr=False)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        slides: str | Path | None = None,
        slide_ids: Sequence[str] = (),
        ids: Ids | None = None,
    ) -> SlideLabels:
        """Read labels.

        A table of slides has a column ``slide_id``; one of patients has only patient_id, case_id,
        case or patient, and its labels hold for all slides of a patient.

        Args:
            path: CSV, TSV, Parquet or catalogue.
            slides: Catalogue or table of slide_id and patient, for a table that lacks either, or
                has gaps.
            slide_ids: Slides that there are, for a table of patients and ``ids``.
            ids: ``tcga`` to take patients and sites that no column gives, and patients that one
                leaves out, from TCGA barcodes.

        Raises:
            CatalogueError: If a table cannot be read, lacks a column, gives a slide two patients or
                sites, contradicts the other source of patients, or names a slide that is no
                barcode though they are asked for.
        """
        path = Path(path)
        table = read_label_table(path, keys=(SLIDE, *PATIENT_COLUMNS))
        if table.key != SLIDE:
            table = _of_slides(table, _owners(path, slides, slide_ids, ids))
        return cls(
            path,
            table.keys,
            _patients(table, None if slides is None else Path(slides), ids),
            _sites(table, ids),
            table,
        )

    def __len__(self) -> int:
        return len(self.slide_ids)

    def column(self, name: str) -> tuple[Text, ...]:
        """A column as text, one value a slide in the order of ``slide_ids``; None where missing.

        Raises:
            CatalogueError: If there is no such column, or it gives a slide or a patient two values.
        """
        return self.table.column(name)

    def numbers(self, name: str) -> NDArray[np.float64]:
        """A column as numbers, (N,) float64, NaN where missing; true and false are 1 and 0.

        Raises:
            CatalogueError: If there is no such column, or a value is no finite number.
        """
        pairs = zip(self.slide_ids, self.column(name), strict=True)
        return np.array([self._number(name, *pair) for pair in pairs], dtype=np.float64)

    def _number(self, name: str, slide_id: str, text: Text) -> float:
        if text is None:
            return np.nan
        try:
            value = float(TRUTH.get(text.lower(), text))
        except ValueError:
            value = np.nan
        if not np.isfinite(value):
            msg = f"column {name!r} needs finite numbers; got {text!r} for slide {slide_id!r}. "
            raise CatalogueError(self.path, f"{msg}Correct it, or leave it empty.")
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
            self.table.rows(rows, key=SLIDE, keys=slide_ids),
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over slides, patients, sites and values, in whatever order they stand."""
        columns = {k: v for k, v in self.table.columns.items() if k != SLIDE}
        names = sorted(columns)
        rows = [
            [s, self.patient_of[s], self.site_of.get(s), [columns[name][row] for name in names]]
            for row, s in enumerate(self.slide_ids)
        ]
        return sha256_of_json([names, sorted(rows, key=lambda values: str(values[0]))])


def _owners(
    path: Path, slides: str | Path | None, slide_ids: Sequence[str], ids: Ids | None
) -> dict[str, str]:
    """Whose each slide is, for a table that knows patients only."""
    if slides is not None:
        table = read_label_table(Path(slides), keys=(SLIDE,))
        column = next((name for name in PATIENT_COLUMNS if name in table.columns), "patient_id")
        pairs = zip(table.keys, table.column(column), strict=True)
        return {slide_id: patient for slide_id, patient in pairs if patient is not None}
    if ids == "tcga":
        return {slide_id: tcga_patient(slide_id) for slide_id in slide_ids}
    msg = "is of patients, not slides. Name the catalogue or table that says whose each slide is."
    raise CatalogueError(path, msg)


def _of_slides(patients: LabelTable, owners: Mapping[str, str]) -> LabelTable:
    """The rows of patients, one a slide of theirs."""
    row_of = {patient: row for row, patient in enumerate(patients.keys)}
    slides = [slide_id for slide_id, patient in owners.items() if patient in row_of]
    owned = {owners[slide_id] for slide_id in slides}
    lost = [patient for patient in patients.keys if patient not in owned]
    if not slides:
        msg = f"names {len(lost)} patients, such as {lost[0]!r}, of whom there is no slide. "
        raise CatalogueError(patients.path, f"{msg}Are they named alike in both tables?")
    if lost:
        told = "%s: %d patients have labels and no slide, such as %s"
        LOGGER.warning(told, patients.path, len(lost), ", ".join(lost[:5]))
    rows = [row_of[owners[slide_id]] for slide_id in slides]
    return patients.rows(rows, key=SLIDE, keys=slides)


def _patients(table: LabelTable, slides: Path | None, ids: Ids | None) -> dict[str, str]:
    column = next((name for name in PATIENT_COLUMNS if name in table.columns), None)
    if column is not None:
        return _patients_of_column(table, column, slides, ids)
    if slides is not None:
        owners = _owners(table.path, slides, (), ids)
        lost = [slide_id for slide_id in table.keys if slide_id not in owners]
        if lost:
            msg = f"gives no patient to {len(lost)} slides, such as {', '.join(lost[:3])}. "
            raise CatalogueError(slides, f"{msg}Add them.")
        return {slide_id: owners[slide_id] for slide_id in table.keys}
    if ids == "tcga":
        return {slide_id: tcga_patient(slide_id) for slide_id in table.keys}
    LOGGER.warning("%s: has no column of patients: each slide counts as one", table.path)
    return {slide_id: slide_id for slide_id in table.keys}


def _patients_of_column(
    table: LabelTable, column: str, slides: Path | None, ids: Ids | None
) -> dict[str, str]:
    """The patients of a column, its gaps filled from the other source where there is one."""
    pairs = list(zip(table.keys, table.column(column), strict=True))
    said = {slide_id: patient for slide_id, patient in pairs if patient is not None}
    others: dict[str, str] = {}
    if slides is not None:
        others = _owners(table.path, slides, (), ids)
        _refuse_two_patients(table.path, said, others, whose=f"{slides} gives")
    elif ids == "tcga" and len(said) < len(pairs):
        others = {slide_id: tcga_patient(slide_id) for slide_id in table.keys}
        _refuse_two_patients(table.path, said, others, whose="its barcode gives")
    known = others | said
    if n_lost := sum(slide_id not in known for slide_id in table.keys):
        told = "%s: %d slides have no %s: each counts as a patient of its own"
        LOGGER.warning(told, table.path, n_lost, column)
    return {slide_id: known.get(slide_id, slide_id) for slide_id in table.keys}


def _refuse_two_patients(
    path: Path, said: Mapping[str, str], others: Mapping[str, str], *, whose: str
) -> None:
    """Two names of a patient would be two patients, on both sides of a split."""
    for slide_id, patient in said.items():
        other = others.get(slide_id, patient)
        if other != patient:
            msg = f"gives patient {patient!r} to slide {slide_id!r}; {whose} {other!r}"
            raise CatalogueError(path, f"{msg}. Name patients alike in both.")


def _sites(table: LabelTable, ids: Ids | None) -> dict[str, str]:
    if SITE in table.columns:
        pairs = zip(table.keys, table.column(SITE), strict=True)
        return {slide_id: where for slide_id, where in pairs if where is not None}
    if ids == "tcga":
        return {slide_id: tcga_site(slide_id) for slide_id in table.keys}
    return {}
