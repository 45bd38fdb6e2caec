"""One embedding a slide, and a patient: statistics over its tiles' embeddings.

Shape suffixes: L tiles, D embedding width, P pooled width (D or 2 D).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from anlage.bags.bag import BagAttributes
from anlage.bags.one_encoder import refuse_mixed
from anlage.bags.store import BagHeader, feature_blocks, list_bags
from anlage.embedding.slide_table import (
    EmbedSlidesResult,
    TableRow,
    by_patient,
    digest,
    patients_table,
    read_patients,
    refuse_other_file,
    write_table,
)
from anlage.errors import BagError
from anlage.progress import meter

Pooling = Literal["mean", "mean+std"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


class Moments:
    """Mean and standard deviation of rows that come in blocks, in float64.

    Sums of float16 values are exact in float64 up to 8,192 rows of any size and far beyond for
    values of usual size. Spreads of blocks are merged by Chan's update, so that they lose nothing
    to cancellation.

    Attributes:
        count: Rows so far.
        width: Their length D.

    Source: Chan, Golub, LeVeque 1983, Algorithms for computing the sample variance, eq. 2.1.
    """

    def __init__(self, width: int) -> None:
        self.count, self.width = 0, width
        self._sum_D = np.zeros(width)
        self._squares_D = np.zeros(width)  # of differences from the mean, summed

    def add(self, block_LD: NDArray[np.floating[Any]]) -> None:
        """Take in some rows, (L, D), at least one."""
        rows_LD = block_LD.astype(np.float64)
        sum_D = rows_LD.sum(axis=0)
        self._merge(len(rows_LD), sum_D, np.square(rows_LD - sum_D / len(rows_LD)).sum(axis=0))

    def merge(self, other: Moments) -> None:
        """Take in the rows that another has taken in."""
        if other.count:
            self._merge(other.count, other._sum_D, other._squares_D)

    def _merge(self, count: int, sum_D: NDArray[Any], squares_D: NDArray[Any]) -> None:
        total = self.count + count
        gap_D = sum_D / count - self._sum_D / max(self.count, 1)
        self._squares_D = self._squares_D + squares_D + gap_D**2 * (self.count * count / total)
        self._sum_D = self._sum_D + sum_D
        self.count = total

    def pooled(self, pooling: Pooling) -> NDArray[np.float64]:
        """(P,) the mean, or the mean and then the standard deviation (divided by the count)."""
        mean_D = self._sum_D / self.count
        if pooling == "mean":
            return mean_D
        return np.concatenate([mean_D, np.sqrt(self._squares_D / self.count)])


@dataclass(frozen=True, slots=True)
class _Pooled:
    slide_id: str
    bag_sha256: str
    slide_mpp: float
    moments: Moments


def embed_slides(
    bags: str | Path,
    output: str | Path,
    *,
    pooling: Pooling = "mean",
    patients: str | Path | None = None,
) -> EmbedSlidesResult:
    """Pool the tiles of each slide, and of each patient, into one row of a Parquet table.

    A patient's embedding is that of all tiles of all its slides as one bag. Everything is added up
    in float64, a block at a time, and stored as float32.

    Args:
        bags: Folder or URL of bags, all of one encoder.
        output: Table of slides to write; that of patients is ``<stem>.patients.parquet`` beside it.
        pooling: ``mean``, (D,); or ``mean+std``, (2 D,): the mean, then the standard deviation.
        patients: Catalogue, or CSV with columns slide_id and patient_id.

    Raises:
        BagError: If there are no bags, they are of several encoders or resolutions, or the output
            is another file or was made by a slide encoder.
        CatalogueError: If ``patients`` cannot be used.
        OSError: If the disk is full or refuses.
        ValueError: If the pooling is not known.
    """
    if pooling not in POOLINGS:
        msg = f"embed_slides: needs pooling {' or '.join(POOLINGS)}; got {pooling!r}."
        raise ValueError(msg)
    refuse_other_file(Path(output), by_encoder=False)
    places = list_bags(bags)
    if not places:
        raise BagError(bags, "holds no bags. Run `embed tiles` first.")
    output, patient_of = Path(output), read_patients(patients)
    empty: list[str] = []
    refused: list[BagError] = []
    found: list[_Pooled] = []
    first: tuple[str, BagAttributes] | None = None
    with meter("embed slides", total=len(places), unit="slides") as progress:
        for slide_id, place in places.items():
            try:
                header, moments = _pooled(place)
            except BagError as error:
                refused.append(error)
                continue
            first = first or (place, header.attributes)
            refuse_mixed(place, header.attributes, *first)
            if moments.count == 0:
                empty.append(slide_id)
            else:
                slide_mpp = header.attributes.slide_mpp
                found.append(_Pooled(slide_id, header.content_sha256, slide_mpp, moments))
            progress.advance()
    made, about = None if first is None else first[1], {"pooling": pooling}
    rows = [_row(slide, pooling, patient_of) for slide in found]
    write_table(output, rows, made, about, level="slide")
    if patients is None:
        return EmbedSlidesResult(output, None, len(rows), empty=empty, refused=refused)
    moments_of = {slide.slide_id: slide.moments for slide in found}
    joined = [_joined(*each, moments_of, pooling) for each in by_patient(rows).items()]
    write_table(patients_table(output), joined, made, about, level="patient")
    unknown = [row.name for row in rows if row.patient_id is None]
    beside, counts = patients_table(output), (len(rows), len(joined))
    return EmbedSlidesResult(output, beside, *counts, empty=empty, refused=refused, unknown=unknown)


def _pooled(place: str) -> tuple[BagHeader, Moments]:
    header, blocks = feature_blocks(place)
    moments = Moments(header.width)
    for block in blocks:
        if not np.isfinite(block).all():
            raise BagError(place, "holds NaN or an infinity. Delete it and embed the slide again.")
        moments.add(block)
    return header, moments


def _row(slide: _Pooled, pooling: Pooling, patient_of: Mapping[str, str]) -> TableRow:
    return TableRow(
        name=slide.slide_id,
        patient_id=patient_of.get(slide.slide_id),
        slide_ids=[slide.slide_id],
        n_tiles=slide.moments.count,
        bag_sha256=slide.bag_sha256,
        slide_mpp=slide.slide_mpp,
        embedding_P=slide.moments.pooled(pooling),
    )


def _joined(
    patient_id: str,
    slides: list[TableRow],
    moments_of: Mapping[str, Moments],
    pooling: Pooling,
) -> TableRow:
    names = [row.name for row in slides]
    moments = Moments(moments_of[names[0]].width)
    for name in names:
        moments.merge(moments_of[name])
    return TableRow(
        name=patient_id,
        patient_id=patient_id,
        slide_ids=names,
        n_tiles=moments.count,
        bag_sha256=digest(row.bag_sha256 for row in slides),
        slide_mpp=None,
        embedding_P=moments.pooled(pooling),
    )
