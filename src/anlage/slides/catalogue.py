"""The catalogue: one row a slide in Parquet, their masks and thumbnails in a second file beside it.

``slides.parquet`` holds the table, ``slides.masks.parquet`` the pictures.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from anlage.errors import CatalogueError, SlideError
from anlage.slides.catalogue_table import FIXED, read_table
from anlage.slides.mask_store import MaskStore, masks_path
from anlage.slides.masks import TissueMask
from anlage.slides.reader import SlideReader, open_slide


@dataclass(frozen=True, kw_only=True, slots=True)
class SlideRow:
    """One slide of a catalogue.

    Attributes:
        slide_id: Unique; the file's stem unless the labels named it.
        patient_id: Whose slide it is; the slide_id where nobody said.
        uri: The file: relative to the catalogue's folder when below it, else absolute.
        fingerprint: Hash of the file's content (``slide_fingerprint``).
        n_bytes: Size of the file.
        width: Of level 0, pixels.
        height: Of level 0, pixels.
        n_levels: Levels of the pyramid.
        level_downsamples: Level-0 pixels per pixel of each level, finest first.
        mpp: Micrometres per level-0 pixel.
        mpp_source: "catalogue" (the labels said it), "vendor", "tiff" or "objective" (estimated).
        vendor: Who wrote the format.
        reader: What reads it.
        tissue_area_mm2: Area of the tissue mask.
        stain: As labelled, or None.
        tissue: As labelled, or None.
        split: As labelled ("train", "test", ...), or None.
        labels: Every other label that is not null.
    """

    slide_id: str
    patient_id: str
    uri: str
    fingerprint: str
    n_bytes: int
    width: int
    height: int
    n_levels: int
    level_downsamples: tuple[float, ...]
    mpp: float
    mpp_source: str
    vendor: str
    reader: str
    tissue_area_mm2: float
    stain: str | None = None
    tissue: str | None = None
    split: str | None = None
    labels: dict[str, str] = field(default_factory=dict)


class Catalogue:
    """A catalogue that is open; cheap to make, since pictures are fetched when they are asked for.

    Attributes:
        path: The Parquet file.
        table: Its rows, or those that were selected.
    """

    def __init__(self, path: Path, table: pa.Table, masks: MaskStore) -> None:
        self.path, self.table, self._masks = path, table, masks

    @classmethod
    def open(cls, path: str | Path) -> Catalogue:
        """Read a catalogue's table and check it.

        Raises:
            CatalogueError: If the file is missing, damaged, no catalogue, of another version, lacks
                a column, holds a null where none may be, or a slide_id twice.
        """
        file = Path(path)
        return cls(file, read_table(file), MaskStore(masks_path(file)))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the rows but for ``uri``: the same after moving or rewriting the file."""
        digest = hashlib.sha256()
        for name in sorted(set(self.table.column_names) - {"uri"}):
            column = self.table.column(name).to_pylist()
            digest.update(json.dumps([name, column], ensure_ascii=True).encode())
        return digest.hexdigest()

    def rows(self) -> list[SlideRow]:
        """Every row as an object, in order."""
        return [_row(record) for record in self.table.to_pylist()]

    def row(self, slide_id: str) -> SlideRow:
        """One slide's row.

        Raises:
            CatalogueError: If there is no such slide.
        """
        return _row(self.table.slice(self._index(slide_id), 1).to_pylist()[0])

    def select(self, **values: str | None) -> Catalogue:
        """The rows whose columns have these values (None: null), as a view of the same file.

        Raises:
            ValueError: If there is no such column.
        """
        keep = pa.array(np.ones(len(self), dtype=np.bool_))
        for name, value in values.items():
            if name not in self.table.column_names:
                known = ", ".join(self.table.column_names)
                msg = f"Catalogue.select needs a column of {self.path}; got {name!r} ({known})."
                raise ValueError(msg)
            column = self.table.column(name).combine_chunks()
            same = pc.is_null(column) if value is None else pc.equal(column, value)
            keep = pc.and_(keep, pc.fill_null(same, fill_value=False))
        return Catalogue(self.path, self.table.filter(keep), self._masks)

    def slide_path(self, slide_id: str) -> Path:
        """Where a slide's file lies."""
        uri = str(self.table.column("uri")[self._index(slide_id)].as_py())
        return self.path.absolute().parent / uri

    def open_slide(self, slide_id: str) -> SlideReader:
        """Open a slide at the catalogue's mpp.

        Raises:
            CatalogueError: If there is no such slide in the catalogue.
            SlideError: If its file is gone, is not the one that was indexed, or cannot be opened.
        """
        row = self.row(slide_id)
        path = self.slide_path(slide_id)
        try:
            n_bytes = path.stat().st_size
        except OSError as error:
            msg = f"was indexed but cannot be found: {error.strerror}. Put it back, or index again."
            raise SlideError(path, msg) from error
        if n_bytes != row.n_bytes:
            msg = f"has {n_bytes} bytes; {row.n_bytes} when it was indexed. Index it again."
            raise SlideError(path, msg)
        slide = open_slide(path, mpp=row.mpp)
        if tuple(slide.size) != (row.width, row.height):
            slide.close()
            then, now = f"{row.width} x {row.height}", f"{slide.size[0]} x {slide.size[1]}"
            raise SlideError(path, f"is {now} px; {then} when it was indexed. Index it again.")
        return slide

    def mask(self, slide_id: str) -> TissueMask:
        """A slide's tissue mask.

        Raises:
            CatalogueError: If the masks file is missing, damaged, or of another catalogue.
        """
        return self._masks.mask(slide_id, self._fingerprint_of(slide_id))

    def thumbnail(self, slide_id: str) -> NDArray[np.uint8]:
        """A slide's thumbnail, (height, width, 3) uint8 RGB, at most 512 pixels long.

        Raises:
            CatalogueError: If the masks file is missing, damaged, or of another catalogue.
        """
        return self._masks.thumbnail(slide_id, self._fingerprint_of(slide_id))

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {s: i for i, s in enumerate(self.table.column("slide_id").to_pylist())}

    def _index(self, slide_id: str) -> int:
        try:
            return self._positions[slide_id]
        except KeyError:
            message = f"has no slide {slide_id!r} among its {len(self)}. See its slide_id column."
            raise CatalogueError(self.path, message) from None

    def _fingerprint_of(self, slide_id: str) -> str:
        return str(self.table.column("fingerprint")[self._index(slide_id)].as_py())


def _row(record: dict[str, Any]) -> SlideRow:
    fixed = {name: record[name] for name in FIXED} | {
        "level_downsamples": tuple(record["level_downsamples"])
    }
    labels = {k: str(v) for k, v in record.items() if k not in FIXED and v is not None}
    return SlideRow(**fixed, labels=labels)
