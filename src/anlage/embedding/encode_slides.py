"""One embedding a slide, and a patient, by a slide encoder.

Shape suffixes: T tiles of the bags of a pass, P width of a slide embedding.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anlage.bags.bag_set import BagSet, LoadedBag
from anlage.bags.grid_cells import grid_cells
from anlage.embedding.slide_table import (
    EmbedSlidesResult,
    TableRow,
    by_patient,
    digest,
    patients_table,
    read_patients,
    refuse_other_file,
    rows_of,
    write_table,
)
from anlage.encoders.slide_encoder import OpenSlideEncoder
from anlage.errors import BagError
from anlage.progress import meter

LOGGER = logging.getLogger(__name__)
TILES_AT_ONCE = 8192  # of small bags that share a pass
SAVE_EVERY_S = 60.0
NOT_FINITE = "its embedding holds NaN or an infinity. Use --precision fp32, or another encoder."
DECIDES = ("fingerprint", "precision")  # whether a row of an earlier run is what this one makes


def encode_slides(
    encoder: OpenSlideEncoder,
    bags: str | Path,
    output: str | Path,
    *,
    patients: str | Path | None = None,
) -> EmbedSlidesResult:
    """Embed each slide by a slide encoder into one row of a Parquet table, and each patient.

    A slide whose embedding is not finite is refused by name.
    A patient's embedding is the mean of those of its slides: tiles of several slides have no place
    on one grid. Bags are read one pass ahead. Rows are put aside every minute, and when the run
    ends early, in ``.<stem>.partial.parquet`` beside the table; the next run keeps those, and the
    rows of an earlier table, that the same encoder made of the same bags at the same precision.

    Args:
        encoder: The slide encoder.
        bags: Folder or URL of bags, all of the tile encoder that it was made for.
        output: Table of slides to write; that of patients is ``<stem>.patients.parquet`` beside it.
        patients: Catalogue, or CSV with columns slide_id and patient_id.

    Raises:
        BagError: If no bag can be used or embedded, they are not those of the slide encoder's tile
            encoder, or the output is another file or was made by pooling.
        CatalogueError: If ``patients`` cannot be used.
        OSError: If the disk is full or refuses.
    """
    output, patient_of = Path(output), read_patients(patients)
    refuse_other_file(output, by_encoder=True)
    bag_set = _bags_for(encoder, bags)
    about = {"pooling": encoder.config.pooling, "slide_encoder": _told(encoder)}
    made = _RowsSoFar(output, bag_set, about)
    n_kept, refused = len(made.rows), list(bag_set.refused)
    try:
        _embed_those_left(encoder, bag_set, made, refused)
    except BaseException:
        made.put_aside()
        raise
    rows = [replace(row, patient_id=patient_of.get(name)) for name, row in made.rows.items()]
    rows.sort(key=lambda row: row.name)
    if not rows:
        msg = f"no slide could be embedded; the first of {len(refused)}: {refused[0]}"
        raise BagError(str(bags), msg)
    write_table(output, rows, bag_set.attributes, about, level="slide")
    made.discard()
    result = EmbedSlidesResult(
        output, None, len(rows), n_kept=n_kept, empty=list(bag_set.empty), refused=refused
    )
    if patients is None:
        return result
    joined = [_mean(patient_id, slides) for patient_id, slides in by_patient(rows).items()]
    beside = patients_table(output)
    write_table(beside, joined, bag_set.attributes, about, level="patient")
    unknown = [row.name for row in rows if row.patient_id is None]
    return replace(result, patients_output=beside, n_patients=len(joined), unknown=unknown)


class _RowsSoFar:
    """Rows by slide: kept of an earlier run, and made by this one."""

    def __init__(self, output: Path, bag_set: BagSet, about: dict[str, Any]) -> None:
        self._beside = output.with_name(f".{output.stem}.partial.parquet")
        self._bag_set, self._about = bag_set, about
        self._saved = time.monotonic()
        self.rows: dict[str, TableRow] = {}
        for path in (output, self._beside):
            self._keep_of(path)

    def _keep_of(self, path: Path) -> None:
        rows, about = rows_of(path)
        theirs, ours = about.get("slide_encoder") or {}, self._about["slide_encoder"]
        if any(theirs.get(name) != ours[name] for name in DECIDES):
            return
        facts = self._bag_set.facts
        self.rows |= {
            row.name: row
            for row in rows
            if row.name in facts
            and row.bag_sha256 == facts[row.name].content_sha256
            and row.slide_mpp == facts[row.name].attributes.slide_mpp
            and not _not_finite(row)
        }

    def add(self, rows: Sequence[TableRow]) -> None:
        """Take in rows, and put all aside if it is time."""
        self.rows |= {row.name: row for row in rows}
        if time.monotonic() - self._saved > SAVE_EVERY_S:
            self.put_aside()

    def put_aside(self) -> None:
        """Write what there is beside the table."""
        if self.rows:
            made = self._bag_set.attributes
            write_table(self._beside, [*self.rows.values()], made, self._about, level="slide")
        self._saved = time.monotonic()

    def discard(self) -> None:
        """Remove what was put aside: the table is there."""
        self._beside.unlink(missing_ok=True)


def _bags_for(encoder: OpenSlideEncoder, bags: str | Path) -> BagSet:
    config = encoder.config
    bag_set = BagSet.open(bags, grid_um=config.grid_um)
    made, place = bag_set.attributes, bag_set.facts[bag_set.slide_ids[0]].place
    encoder.refuse_bag(made, width=bag_set.width, n_tiles=max(bag_set.n_tiles), place=place)
    if config.tile_encoder.fingerprint is None and not made.encoder_name:
        LOGGER.warning(
            "%s: does not say the name of its encoder; taken for %s, whose width it has",
            *(bags, config.tile_encoder.name),
        )
    return bag_set


def _told(encoder: OpenSlideEncoder) -> dict[str, Any]:
    config = encoder.config
    return {
        "name": str(config.provenance.get("preset", "")),
        "fingerprint": encoder.fingerprint,
        "grid_um": config.grid_um,
        "precision": encoder.precision,
    }


def _embed_those_left(
    encoder: OpenSlideEncoder, bag_set: BagSet, made: _RowsSoFar, refused: list[BagError]
) -> None:
    n_kept = len(made.rows)
    groups = _passes(bag_set, without=made.rows.keys())
    with meter("embed slides", total=len(bag_set), unit="slides", done=n_kept) as progress:
        for group in _read_ahead(bag_set, groups):
            refused += [bag for bag in group if isinstance(bag, BagError)]
            read = [bag for bag in group if not isinstance(bag, BagError)]
            rows = _rows(encoder, bag_set, read) if read else []
            refused += [_refusal(bag_set, row) for row in rows if _not_finite(row)]
            made.add([row for row in rows if not _not_finite(row)])
            progress.advance(len(group))


def _passes(bag_set: BagSet, *, without: Set[str]) -> list[list[str]]:
    """Slides that go through the encoder together: small ones share a pass."""
    passes: list[list[str]] = []
    n_in_last = TILES_AT_ONCE
    for slide_id, n_tiles in zip(bag_set.slide_ids, bag_set.n_tiles, strict=True):
        if slide_id in without:
            continue
        if n_in_last + n_tiles > TILES_AT_ONCE:
            passes.append([])
            n_in_last = 0
        passes[-1].append(slide_id)
        n_in_last += n_tiles
    return passes


def _read_ahead(
    bag_set: BagSet, groups: Sequence[Sequence[str]]
) -> Iterator[list[LoadedBag | BagError]]:
    """The bags of each pass, or why one cannot be read; the next pass is read meanwhile."""
    with ThreadPoolExecutor(1, thread_name_prefix="anlage-bags") as thread:
        ahead = [thread.submit(_read, bag_set, group) for group in groups[:1]]
        for following in [*groups[1:], None]:
            if not ahead:
                return
            read = ahead.pop().result()
            if following is not None:
                ahead.append(thread.submit(_read, bag_set, following))
            yield read


def _read(bag_set: BagSet, group: Sequence[str]) -> list[LoadedBag | BagError]:
    return [_bag_or_error(bag_set, slide_id) for slide_id in group]


def _bag_or_error(bag_set: BagSet, slide_id: str) -> LoadedBag | BagError:
    try:
        return bag_set.read(slide_id)
    except BagError as error:
        return error


def _rows(encoder: OpenSlideEncoder, bag_set: BagSet, bags: Sequence[LoadedBag]) -> list[TableRow]:
    grid_um = encoder.config.grid_um
    cells = [grid_cells(bag.corner_L2, slide_mpp=bag.slide_mpp, grid_um=grid_um) for bag in bags]
    lengths = [len(bag.features_LD) for bag in bags]
    embedding_BP = encoder.embed(
        torch.cat([bag.features_LD for bag in bags]),
        torch.from_numpy(np.concatenate(cells)),
        lengths,
    )
    return [
        TableRow(
            name=bag.slide_id,
            patient_id=None,
            slide_ids=[bag.slide_id],
            n_tiles=length,
            bag_sha256=bag_set.facts[bag.slide_id].content_sha256,
            slide_mpp=bag.slide_mpp,
            embedding_P=embedding_P,
        )
        for bag, length, embedding_P in zip(bags, lengths, embedding_BP.cpu().numpy(), strict=True)
    ]


def _not_finite(row: TableRow) -> bool:
    return not np.isfinite(row.embedding_P).all()


def _refusal(bag_set: BagSet, row: TableRow) -> BagError:
    error = BagError(bag_set.facts[row.name].place, NOT_FINITE)
    LOGGER.warning("left out: %s", error)
    return error


def _mean(patient_id: str, slides: Sequence[TableRow]) -> TableRow:
    return TableRow(
        name=patient_id,
        patient_id=patient_id,
        slide_ids=[row.name for row in slides],
        n_tiles=sum(row.n_tiles for row in slides),
        bag_sha256=digest(row.bag_sha256 for row in slides),
        slide_mpp=None,
        embedding_P=np.mean([row.embedding_P for row in slides], axis=0, dtype=np.float64),
    )
