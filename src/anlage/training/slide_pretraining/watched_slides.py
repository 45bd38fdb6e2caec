"""The labelled slides that a run is watched on, refused before its first step if unfit for it."""

# Shape suffixes: N slides.

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anlage.bags.loader import BagSet
from anlage.bags.slide_labels import SlideLabels
from anlage.errors import LabelledDataError
from anlage.provenance import sha256_of_json
from anlage.training.watched_rows import refuse_unfit_rows

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class WatchedSlides:
    """Slides with labels and patients.

    Attributes:
        path: The table they are from; errors begin with it.
        slide_ids: The slides, N of them; each has a bag.
        label_N: (N,) class of each.
        group_N: (N,) patient of each; a patient is never split.
        fold_N: None: whole patients are dealt into folds.
        fingerprint: SHA-256 of slides, labels and patients, for the record of the run.

    Raises:
        LabelledDataError: If there is only one class, or a class has one patient.
    """

    path: Path
    slide_ids: tuple[str, ...]
    label_N: NDArray[Any]
    group_N: NDArray[Any]
    fingerprint: str
    fold_N: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        refuse_unfit_rows(self, n_rows=len(self.slide_ids))

    @property
    def what(self) -> str:
        """What a row is."""
        return "slide"


def watched_slides(
    table: SlideLabels, bags: BagSet, *, label: str, lost: Collection[str] = ()
) -> WatchedSlides:
    """The slides of a table that have a label and a bag.

    Args:
        table: Labels and patients.
        bags: The bags; slides without one are counted in the log.
        label: Column of the labels.
        lost: Slides whose bag was there when the run began; the fingerprint still counts them.

    Raises:
        CatalogueError: If there is no such column.
        LabelledDataError: If no slide has both, or the slides cannot be probed.
    """
    there = set(bags.slide_ids)
    found = dict(zip(table.slide_ids, table.column(label), strict=True))
    labelled = {slide: value for slide, value in found.items() if value is not None}
    kept = sorted(labelled.keys() & there)
    if absent := sorted(labelled.keys() - there):
        told = "%d labelled slides have no bag and are not watched, such as %s"
        LOGGER.warning(told, len(absent), absent[0])
    if not kept:
        msg = f"needs slides with a label in {label!r} and a bag; got none of {len(found)} slides"
        raise LabelledDataError(table.path, f"{msg}. Check slide_id.")
    began = sorted({*kept, *(labelled.keys() & set(lost))})
    rows = [[slide, labelled[slide], table.patient_of[slide]] for slide in began]
    return WatchedSlides(
        path=table.path,
        slide_ids=tuple(kept),
        label_N=np.array([labelled[slide] for slide in kept]),
        group_N=np.array([table.patient_of[slide] for slide in kept]),
        fingerprint=sha256_of_json([label, rows]),
    )
