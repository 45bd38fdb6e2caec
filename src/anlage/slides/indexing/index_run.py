"""One index under way: plan, examine, accept, write."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from anlage.progress import meter
from anlage.slides.catalogue import Catalogue
from anlage.slides.indexing.examine import TissueSettings, Unusable
from anlage.slides.indexing.examining import examine_all
from anlage.slides.indexing.found_slide import FoundSlide, Refused, read_refused, write_refused
from anlage.slides.indexing.index_plan import (
    Earlier,
    Entry,
    labels_by_location,
    located,
    plan_index,
    uri_of,
)
from anlage.slides.indexing.index_table import MeasuredRows, write_rows
from anlage.slides.indexing.labels import Labels
from anlage.slides.mask_packs import PackWriter, finished_rows, packs_of, remove_packs
from anlage.slides.mask_store import masks_path
from anlage.slides.storage.location import is_remote
from anlage.slides.tissue.user_masks import unmatched_masks

DRAWN = "user"  # tissue_method of a mask that a user drew
LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class IndexResult:
    """What became of the slides.

    Attributes:
        catalogue: The catalogue written; None if no slide was accepted (nothing is written then).
        n_accepted: Slides in it.
        n_read: Slides that were examined; the others had been before, and have not changed.
        refused: Files that are not in it, with the reason; also in ``slides.refused.csv``.
        unmatched_labels: Rows of the labels file for which no slide was found.
        slides_without_labels: Accepted slides that the labels file does not name.
        unmatched_masks: Files in the folder of drawn masks that belong to no slide.
    """

    catalogue: Catalogue | None
    n_accepted: int
    n_read: int
    refused: list[Refused]
    unmatched_labels: list[str]
    slides_without_labels: list[str]
    unmatched_masks: list[str]


class IndexRun:
    """Makes or renews one catalogue, whose folder of masks the caller holds.

    Attributes:
        output: The Parquet file.
        settings: How tissue is found.
        labels: What to join, or None.
        earlier: The catalogue as it is, or None.
        is_adding: Whether its slides stay that were not found.
    """

    def __init__(
        self,
        output: Path,
        settings: TissueSettings,
        *,
        labels: Labels | None,
        earlier: Earlier | None,
        is_adding: bool,
    ) -> None:
        self.output, self.settings, self.labels = output, settings, labels
        self.earlier, self.is_adding = earlier, is_adding
        self._packs = masks_path(output)
        self._rows = MeasuredRows()
        self._measured: dict[str, int] = {}  # by location, the number of the row
        self._unusable: dict[str, str] = {}  # by location, the reason

    def run(
        self, found: Sequence[FoundSlide], unfound: Sequence[Refused], *, workers: int | None
    ) -> IndexResult:
        """Index the slides that were found.

        Args:
            found: The slides.
            unfound: What was named and is no slide.
            workers: As ``examine_all`` takes it.
        """
        entries, unmatched = self._plan(found, unfound)
        todo = self._resume([entry for entry in entries if entry.task is not None], len(entries))
        self._examine(todo, workers=workers, n_known=len(entries) - len(todo))
        accepted, refused = self._accept(entries)
        refused = [*(Refused(self._uri(r.uri), r.reason) for r in unfound), *refused]
        write_refused(self.output, [*self._still_refused(accepted, refused), *refused])
        catalogue = self._write(accepted)
        # last: until now the packs are what a killed index goes on from
        remove_packs(
            self._packs, keep=self._used_packs if catalogue is None else _packs_used(catalogue)
        )
        if self.labels is None:
            bare = []
        else:  # of the slides that were named now
            bare = sorted(e.slide_id for e, _ in accepted if e.label is None and e.is_found)
        return IndexResult(
            catalogue=catalogue,
            n_accepted=len(accepted),
            n_read=len(todo),
            refused=refused,
            unmatched_labels=unmatched,
            slides_without_labels=bare,
            unmatched_masks=self._unmatched_masks(entries),
        )

    def _plan(
        self, found: Sequence[FoundSlide], unfound: Sequence[Refused]
    ) -> tuple[list[Entry], list[str]]:
        """The catalogue's slides, and the names of labels that mean none."""
        folder = self.output.parent
        # rows below an address that did not answer stay: nobody took their slides away
        keep = [""] if self.is_adding else [r.uri for r in unfound if is_remote(r.uri)]
        others: list[str] = []
        if self.is_adding and self.earlier is not None:
            others = [located(uri, folder) for uri in self.earlier.uris.names.to_pylist()]
        means = labels_by_location(self.labels, found, unfound, others)
        entries = plan_index(
            found,
            self.earlier,
            folder=folder,
            keep=keep,
            means=means,
            gives_mpp=self.labels is not None and self.labels.gives_mpp,
            settings=self.settings,
        )
        matched = {row.name for row in means.values()}
        rows = [] if self.labels is None else self.labels.rows
        return entries, [row.name for row in rows if row.name not in matched]

    def _resume(self, entries: Sequence[Entry], n_in_all: int) -> list[Entry]:
        """Take what an index that was killed has examined; returns what is left to do."""
        places = {entry.key: entry.location for entry in entries if entry.key}
        for pack in packs_of(self._packs):
            if pack.name not in self._used_packs:
                for row in finished_rows(pack):
                    if row["index_key"] in places:
                        self._measured[places[row["index_key"]]] = self._rows.add(row)
        todo = [entry for entry in entries if entry.location not in self._measured]
        if len(todo) < n_in_all:
            told = "%d of %d slides have been examined before; %d to do"
            LOGGER.info(told, n_in_all - len(todo), n_in_all, len(todo))
        return todo

    def _examine(self, entries: Sequence[Entry], *, workers: int | None, n_known: int) -> None:
        """Examine slides; what is found out of each is kept at once."""
        tasks = [entry.task for entry in entries if entry.task is not None]
        writer = PackWriter(self._packs)
        total = n_known + len(entries)
        try:
            with meter("index", total=total, unit="slides", done=n_known) as progress:
                for i, outcome in examine_all(tasks, self.settings, workers=workers):
                    entry = entries[i]
                    if isinstance(outcome, Unusable):
                        self._refuse(entry, outcome)
                    else:
                        if outcome.warning:
                            LOGGER.warning("%s: %s", entry.location, outcome.warning)
                        row = writer.add(entry.key, outcome.row, outcome.pictures)
                        self._measured[entry.location] = self._rows.add(row)
                    progress.advance(note=entry.slide_id)
        finally:
            writer.close()

    def _refuse(self, entry: Entry, outcome: Unusable) -> None:
        if outcome.traceback:
            LOGGER.error("%s: unexpected error\n%s", entry.location, outcome.traceback)
        assert entry.task is not None
        reason = outcome.reason + _companions(entry.task.slide)
        self._unusable[entry.location] = reason
        LOGGER.warning("refused %s: %s", entry.location, reason)

    def _accept(
        self, entries: Sequence[Entry]
    ) -> tuple[list[tuple[Entry, int | None]], list[Refused]]:
        """Slides in the catalogue's order, each with its new row if it has one; and the others."""
        accepted: list[tuple[Entry, int | None]] = []
        refused: list[Refused] = []
        taken: dict[str, str] = {}
        for entry in entries:
            reason = self._unusable.get(entry.location)
            if reason is None and entry.slide_id in taken:
                reason = (
                    f"slide_id {entry.slide_id!r} is taken by {taken[entry.slide_id]}. Rename one "
                    "file, or give both an id in a labels file with columns path and slide_id."
                )
                LOGGER.warning("refused %s: %s", entry.location, reason)
            if reason is not None:
                refused.append(Refused(entry.uri, reason))
                continue
            taken[entry.slide_id] = entry.location
            accepted.append((entry, self._measured.get(entry.location)))
        return accepted, refused

    def _still_refused(
        self, accepted: Sequence[tuple[Entry, int | None]], refused: Sequence[Refused]
    ) -> list[Refused]:
        """Files refused by an earlier index that this one, which adds, did not come across."""
        if not self.is_adding:
            return []
        met = {entry.uri for entry, _ in accepted} | {entry.uri for entry in refused}
        return [entry for entry in read_refused(self.output) if entry.uri not in met]

    def _write(self, accepted: Sequence[tuple[Entry, int | None]]) -> Catalogue | None:
        """Write the table; None if it would be empty."""
        if not accepted:
            return None
        before = None if self.earlier is None else self.earlier.catalogue
        if before is not None:
            self._warn_of_drawings_left_out(accepted, before)
        write_rows(self.output, accepted, self._rows, earlier=before, labels=self.labels)
        catalogue = Catalogue.open(self.output)
        own = pc.equal(catalogue.column("patient_id"), catalogue.column("slide_id"))
        n_own = pc.sum(own).as_py() or 0
        if n_own:
            LOGGER.info("%d of %d slides count as a patient of their own", n_own, len(catalogue))
        return catalogue

    def _warn_of_drawings_left_out(
        self, accepted: Sequence[tuple[Entry, int | None]], before: Catalogue
    ) -> None:
        """Say which slides had a mask that a user drew, and now have one that a method found."""
        had, has = (
            np.asarray(pc.equal(table.column("tissue_method"), DRAWN))
            for table in (before, self._rows.table())
        )
        lost = [
            entry.slide_id
            for entry, row in accepted
            if entry.earlier is not None and row is not None and had[entry.earlier] and not has[row]
        ]
        if lost:
            told = "%d slides had a mask that was drawn, and now have one that was found (%s%s). "
            told += "Index them with --masks to have the drawn ones again"
            LOGGER.warning(told, len(lost), ", ".join(lost[:3]), ", ..." if lost[3:] else "")

    @cached_property
    def _used_packs(self) -> set[str]:
        return set() if self.earlier is None else _packs_used(self.earlier.catalogue)

    def _unmatched_masks(self, entries: Sequence[Entry]) -> list[str]:
        masks = self.settings.masks
        return [] if masks is None else unmatched_masks(masks, {e.slide_id for e in entries})

    def _uri(self, location: str) -> str:
        return uri_of(location, self.output.parent)


def _packs_used(catalogue: Catalogue) -> set[str]:
    return set(pc.unique(catalogue.column("mask_pack")).to_pylist())


def _companions(slide: FoundSlide) -> str:
    """Names of the files that went with a refused one, so that none goes unnamed."""
    names = ", ".join(Path(file).name for file in slide.companions)
    return f" Of the same slide: {names}." if names else ""
