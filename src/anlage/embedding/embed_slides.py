"""One embedding a slide, and a patient, pooled from its tiles' embeddings.

Shape suffixes: L tiles, D embedding width, P pooled width (D or 2 D).
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from anlage.bags.bag import BagAttributes
from anlage.bags.one_encoder import ONE_ENCODER, refuse_mixed
from anlage.bags.store import BagHeader, feature_blocks, list_bags
from anlage.errors import BagError, CatalogueError
from anlage.files import replace_whole
from anlage.progress import meter
from anlage.provenance import git_commit, versions
from anlage.slides.catalogue import Catalogue

FORMAT = "slide_embeddings/1"
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
class EmbedSlidesResult:
    """What was pooled.

    Attributes:
        output: Table of slides.
        patients_output: Table of patients; None if none were asked for.
        n_slides: Rows of the first.
        n_patients: Rows of the second.
        empty: Slides whose bag holds no tile; they have no row.
        refused: Bags that cannot be read, with the reason.
        unknown: Slides of which nobody said whose they are; in no patient's row.
    """

    output: Path
    patients_output: Path | None = None
    n_slides: int = 0
    n_patients: int = 0
    empty: list[str] = field(default_factory=list)
    refused: list[BagError] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    patient_id: str | None
    slide_ids: list[str]
    bag_sha256: str
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
        BagError: If there are no bags, or they are of several encoders or resolutions.
        CatalogueError: If ``patients`` cannot be used.
        OSError: If the disk is full or refuses.
        ValueError: If the pooling is not known.
    """
    if pooling not in POOLINGS:
        msg = f"embed_slides: needs pooling {' or '.join(POOLINGS)}; got {pooling!r}."
        raise ValueError(msg)
    places = list_bags(bags)
    if not places:
        raise BagError(bags, "holds no bags. Run `embed tiles` first.")
    output, patient_of = Path(output), _patients(patients)
    empty: list[str] = []
    refused: list[BagError] = []
    rows: list[_Row] = []
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
                rows.append(_slide_row(slide_id, header, moments, patient_of))
            progress.advance()
    made = None if first is None else first[1]
    _write(output, rows, made, pooling, key="slide_id")
    unknown = [] if patients is None else [row.name for row in rows if row.patient_id is None]
    by_patient = _by_patient(rows)
    patients_output = None
    if patients is not None:
        patients_output = output.with_name(f"{output.stem}.patients.parquet")
        _write(patients_output, by_patient, made, pooling, key="patient_id")
    return EmbedSlidesResult(
        output, patients_output, len(rows), len(by_patient), empty, refused, unknown
    )


def _pooled(place: str) -> tuple[BagHeader, Moments]:
    header, blocks = feature_blocks(place)
    moments = Moments(header.width)
    for block in blocks:
        if not np.isfinite(block).all():
            raise BagError(place, "holds NaN or an infinity. Delete it and embed the slide again.")
        moments.add(block)
    return header, moments


def _slide_row(
    slide_id: str, header: BagHeader, moments: Moments, patient_of: Mapping[str, str]
) -> _Row:
    patient_id = patient_of.get(slide_id)
    return _Row(slide_id, patient_id, [slide_id], header.content_sha256, moments)


def _by_patient(rows: Iterable[_Row]) -> list[_Row]:
    grouped: dict[str, list[_Row]] = {}
    for row in rows:
        if row.patient_id is not None:
            grouped.setdefault(row.patient_id, []).append(row)
    return [_joined(patient_id, slides) for patient_id, slides in sorted(grouped.items())]


def _joined(patient_id: str, slides: list[_Row]) -> _Row:
    moments = Moments(slides[0].moments.width)
    for row in slides:
        moments.merge(row.moments)
    names = [row.name for row in slides]
    return _Row(patient_id, patient_id, names, _digest(row.bag_sha256 for row in slides), moments)


def _digest(checksums: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(checksums).encode()).hexdigest()


def _patients(source: str | Path | None) -> dict[str, str]:
    """Whose each slide is, by slide_id."""
    if source is None:
        return {}
    if str(source).endswith(".parquet"):
        return {row.slide_id: row.patient_id for row in Catalogue.open(source).iter_rows()}
    try:
        with Path(source).open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CatalogueError(source, f"cannot be read as CSV ({error}). Check it.") from error
    found: dict[str, str] = {}
    for row in rows:
        slide_id, patient_id = row.get("slide_id"), row.get("patient_id")
        if slide_id is None or patient_id is None:
            msg = f"needs columns slide_id and patient_id; got {', '.join(row)}. Rename them."
            raise CatalogueError(source, msg)
        if found.setdefault(slide_id, patient_id) != patient_id:
            msg = f"gives slide {slide_id!r} to {found[slide_id]!r} and {patient_id!r}. Keep one."
            raise CatalogueError(source, msg)
    return {slide_id: patient_id for slide_id, patient_id in found.items() if patient_id}


def _write(
    path: Path, rows: list[_Row], made: BagAttributes | None, pooling: Pooling, *, key: str
) -> None:
    pooled_P = [row.moments.pooled(pooling) for row in rows]
    width = len(pooled_P[0]) if rows else 0
    values = np.concatenate([np.empty(0), *pooled_P]).astype(np.float32)
    columns: dict[str, pa.Array] = {key: pa.array([row.name for row in rows], pa.string())}
    if key == "slide_id":
        columns["patient_id"] = pa.array([row.patient_id for row in rows], pa.string())
    else:
        columns["slide_ids"] = pa.array([row.slide_ids for row in rows], pa.list_(pa.string()))
    columns |= {
        "n_tiles": pa.array([row.moments.count for row in rows], pa.int64()),
        "bag_sha256": pa.array([row.bag_sha256 for row in rows], pa.string()),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(values), max(width, 1)),
    }
    about = _provenance(rows, made, pooling, key)
    table = pa.table(columns).replace_schema_metadata({"anlage": json.dumps(about)})
    try:
        with replace_whole(path) as beside:
            pq.write_table(table, beside)
    except OSError as error:
        raise OSError(error.errno, f"embed_slides: {error.strerror}", str(path)) from error


def _provenance(
    rows: list[_Row], made: BagAttributes | None, pooling: Pooling, key: str
) -> dict[str, Any]:
    made_with = () if made is None else ("encoder_name", *ONE_ENCODER)
    return {
        "format": FORMAT,
        "level": key.removesuffix("_id"),
        "pooling": pooling,
        "bags_sha256": _digest(row.bag_sha256 for row in rows),
        "versions": versions(),
        "commit": git_commit(),
        **{name: getattr(made, name) for name in made_with},
    }
