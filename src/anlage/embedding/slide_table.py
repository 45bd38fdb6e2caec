"""The table of slide embeddings, and of patients': one row each, with what made them.

Shape suffixes: P width of an embedding.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from anlage.bags.bag import BagAttributes
from anlage.bags.one_encoder import ONE_ENCODER
from anlage.errors import BagError, CatalogueError
from anlage.files import replace_whole
from anlage.provenance import git_commit, versions
from anlage.slides.catalogue import Catalogue

FORMAT = "slide_embeddings/1"


@dataclass(frozen=True, slots=True)
class TableRow:
    """One slide, or one patient.

    Attributes:
        name: Slide or patient.
        patient_id: Whose the slide is; None if nobody said.
        slide_ids: The slide, or the patient's.
        n_tiles: Tiles that went into it.
        bag_sha256: The bag's fingerprint; of a patient, that over its slides'.
        slide_mpp: Resolution of the slide's level 0, micrometres per pixel; None of a patient.
        embedding_P: (P,) of any floating dtype.
    """

    name: str
    patient_id: str | None
    slide_ids: Sequence[str]
    n_tiles: int
    bag_sha256: str
    slide_mpp: float | None
    embedding_P: NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class EmbedSlidesResult:
    """What was embedded.

    Attributes:
        output: Table of slides.
        patients_output: Table of patients; None if none were asked for.
        n_slides: Rows of the first.
        n_patients: Rows of the second.
        n_kept: Slides whose row an earlier, equal run had made.
        empty: Slides whose bag holds no tile; they have no row.
        refused: Bags that cannot be used, with the reason.
        unknown: Slides of which nobody said whose they are; in no patient's row.
    """

    output: Path
    patients_output: Path | None = None
    n_slides: int = 0
    n_patients: int = 0
    n_kept: int = 0
    empty: list[str] = field(default_factory=list)
    refused: list[BagError] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def write_table(
    path: Path,
    rows: Sequence[TableRow],
    made: BagAttributes | None,
    about: Mapping[str, Any],
    *,
    level: Literal["slide", "patient"],
) -> None:
    """Write a table whole or not at all; an existing one is replaced.

    Args:
        path: Parquet file to write.
        rows: Its rows; embeddings are stored as float32.
        made: What the bags were made from; None if there are none.
        about: More for the provenance: how tiles became a slide.
        level: What a row is.

    Raises:
        OSError: If the disk is full or refuses.
    """
    width = len(rows[0].embedding_P) if rows else 0
    values = np.concatenate([np.empty(0), *(row.embedding_P for row in rows)]).astype(np.float32)
    columns: dict[str, pa.Array] = {
        f"{level}_id": pa.array([row.name for row in rows], pa.string())
    }
    if level == "slide":
        columns["patient_id"] = pa.array([row.patient_id for row in rows], pa.string())
        columns["slide_mpp"] = pa.array([row.slide_mpp for row in rows], pa.float64())
    else:
        columns["slide_ids"] = pa.array([row.slide_ids for row in rows], pa.list_(pa.string()))
    columns |= {
        "n_tiles": pa.array([row.n_tiles for row in rows], pa.int64()),
        "bag_sha256": pa.array([row.bag_sha256 for row in rows], pa.string()),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(values), max(width, 1)),
    }
    told = json.dumps(_provenance(rows, made, level) | dict(about))
    table = pa.table(columns).replace_schema_metadata({"anlage": told})
    try:
        with replace_whole(path) as beside:
            pq.write_table(table, beside)
    except OSError as error:
        raise OSError(error.errno, f"embed_slides: {error.strerror}", str(path)) from error


def refuse_other_file(path: Path, *, by_encoder: bool) -> None:
    """Refuse to write over what is no table of slides, or one that was made in another way.

    Args:
        path: Where a table is to be written.
        by_encoder: Whether by a slide encoder; else by pooling tiles.

    Raises:
        BagError: If such a file is there.
    """
    if not path.exists():
        return
    try:
        about = dict(json.loads(pq.read_schema(path).metadata[b"anlage"]))
    except (OSError, pa.ArrowException, TypeError, KeyError, ValueError):
        about = {}
    if about.get("format") != FORMAT:
        msg = "is there, and is no table of slide embeddings. Name another output, or move it away."
        raise BagError(path, msg)
    if ("slide_encoder" in about) != by_encoder:
        ways = {True: "by a slide encoder", False: "by pooling tiles"}
        msg = f"was made {ways[not by_encoder]}; this run makes one {ways[by_encoder]}. "
        raise BagError(path, f"{msg}Name another output, or delete it.")


def rows_of(path: Path) -> tuple[list[TableRow], dict[str, Any]]:
    """The rows of a table of slides, and its provenance; none of a file that is no such table."""
    try:
        table = pq.read_table(path)
        about = dict(json.loads(table.schema.metadata[b"anlage"]))
    except (OSError, pa.ArrowException, TypeError, KeyError, ValueError):
        return [], {}
    kind = about.get("format"), about.get("level")
    if kind != (FORMAT, "slide") or table.num_rows == 0:
        return [], {}
    embedding_BP = np.stack(table["embedding"].to_numpy())
    rows = [
        TableRow(
            name=row["slide_id"],
            patient_id=row["patient_id"],
            slide_ids=[row["slide_id"]],
            n_tiles=row["n_tiles"],
            bag_sha256=row["bag_sha256"],
            slide_mpp=row.get("slide_mpp"),  # which older tables do not have
            embedding_P=embedding_P,
        )
        for row, embedding_P in zip(
            table.drop_columns(["embedding"]).to_pylist(), embedding_BP, strict=True
        )
    ]
    return rows, about


def patients_table(output: Path) -> Path:
    """Where the table of patients lies: beside that of slides."""
    return output.with_name(f"{output.stem}.patients.parquet")


def by_patient(rows: Iterable[TableRow]) -> dict[str, list[TableRow]]:
    """Rows of slides by their patient, sorted; those of nobody are left out."""
    grouped: dict[str, list[TableRow]] = {}
    for row in rows:
        if row.patient_id is not None:
            grouped.setdefault(row.patient_id, []).append(row)
    return dict(sorted(grouped.items()))


def digest(checksums: Iterable[str]) -> str:
    """SHA-256 over checksums, in their order."""
    return hashlib.sha256("\n".join(checksums).encode()).hexdigest()


def read_patients(source: str | Path | None) -> dict[str, str]:
    """Whose each slide is, by slide_id.

    Args:
        source: Catalogue, or CSV with columns slide_id and patient_id; None for nobody's.

    Raises:
        CatalogueError: If it cannot be used.
    """
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


def _provenance(rows: Sequence[TableRow], made: BagAttributes | None, level: str) -> dict[str, Any]:
    made_with = () if made is None else ("encoder_name", *ONE_ENCODER)
    return {
        "format": FORMAT,
        "level": level,
        "bags_sha256": digest(row.bag_sha256 for row in rows),
        "versions": versions(),
        "commit": git_commit(),
        **{name: getattr(made, name) for name in made_with},
    }
