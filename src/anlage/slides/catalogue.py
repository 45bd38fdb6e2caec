"""The catalogue: one row a slide in Parquet, their masks and thumbnails in a folder beside it.

``slides.parquet`` holds the table, ``slides.masks/`` the pictures. Columns are read when they are
asked for and rows when they are needed, so that millions of slides open in seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from anlage.errors import CatalogueError, SlideError
from anlage.slides.catalogue_table import FIXED, PLACES, REMEDY, TableFile
from anlage.slides.mask_store import MaskStore, masks_path
from anlage.slides.masks import TissueMask
from anlage.slides.reader import SlideReader, open_slide
from anlage.slides.sorted_ids import SortedIds
from anlage.slides.storage.location import is_remote
from anlage.slides.table_hash import hash_blocks

LISTS = ("level_downsamples", "level_tile_width", "level_tile_height")
OF_PICTURES = ("fingerprint", "mask_mpp", "mask_pack", "mask_offset")
OF_OPENING = ("uri", "mpp", "n_bytes", "version", "width", "height")


@dataclass(frozen=True, kw_only=True, slots=True)
class SlideRow:
    """One slide of a catalogue.

    Attributes:
        slide_id: Unique; the file's stem unless the labels named it.
        patient_id: Whose slide it is; the slide_id where nobody said.
        uri: The file: relative to the catalogue's folder when below it, else absolute; or a URL.
        version: ETag of a remote slide; None of a local one.
        fingerprint: Hash of the file's content (``slide_fingerprint``).
        n_bytes: Size of the file.
        width: Of level 0, pixels.
        height: Of level 0, pixels.
        n_levels: Levels of the pyramid.
        level_downsamples: Level-0 pixels per pixel of each level, finest first.
        level_tile_width: Width of the file's own tiles on each level, pixels; 0 where not known.
        level_tile_height: Their height.
        mpp: Micrometres per level-0 pixel.
        mpp_source: "catalogue" (the labels said it), "vendor", "tiff" or "objective" (estimated).
        vendor: Who wrote the format.
        reader: What reads it.
        tissue_area_mm2: Area of the tissue mask.
        tissue_method: What found the tissue: "otsu", "user", ...
        mask_mpp: Resolution of the tissue mask, micrometres per pixel.
        stain: As labelled, or None.
        tissue: As labelled, or None.
        split: As labelled ("train", "test", ...), or None.
        labels: Every other column that is not null, as text.
    """

    slide_id: str
    patient_id: str
    uri: str
    version: str | None = None
    fingerprint: str
    n_bytes: int
    width: int
    height: int
    n_levels: int
    level_downsamples: tuple[float, ...]
    level_tile_width: tuple[int, ...]
    level_tile_height: tuple[int, ...]
    mpp: float
    mpp_source: str
    vendor: str
    reader: str
    tissue_area_mm2: float
    tissue_method: str
    mask_mpp: float
    stain: str | None = None
    tissue: str | None = None
    split: str | None = None
    labels: dict[str, str] = field(default_factory=dict)


class Catalogue:
    """A catalogue that is open, or the rows of one that were selected.

    Attributes:
        path: The Parquet file.
    """

    def __init__(
        self,
        path: Path,
        file: TableFile,
        masks: MaskStore,
        *,
        ids: SortedIds,
        chosen: NDArray[np.int64] | None = None,
    ) -> None:
        self.path = path
        self._file, self._masks, self._ids = file, masks, ids
        self._chosen = chosen  # row numbers of the file, ascending; None: all of them

    @classmethod
    def open(cls, path: str | Path) -> Catalogue:
        """Open a catalogue and check it.

        Raises:
            CatalogueError: If the file is missing, damaged, no catalogue, of another version, lacks
                a column, holds a null where none may be, or a slide_id twice.
        """
        file = TableFile(Path(path))
        file.refuse_nulls()
        ids = SortedIds(file.column("slide_id"))
        twice = ids.first_duplicate()
        if twice is not None:
            raise CatalogueError(path, f"has slide_id {twice!r} more than once. {REMEDY}")
        return cls(Path(path), file, MaskStore(masks_path(Path(path))), ids=ids)

    def __len__(self) -> int:
        return self._file.n_rows if self._chosen is None else len(self._chosen)

    def __contains__(self, slide_id: object) -> bool:
        row = self._ids.find(str(slide_id))
        return row is not None and self._has_chosen(row)

    @property
    def column_names(self) -> list[str]:
        """Names of its columns."""
        return list(self._file.schema.names)

    @property
    def schema(self) -> pa.Schema:
        """Its columns with their types."""
        return self._file.schema

    def rows_between(self, first: int, last: int) -> pa.Table:
        """The rows from ``first`` to before ``last``, every column, at least one."""
        if self._chosen is None:
            return self._file.rows_between(first, last)
        chosen = self._chosen[first:last]
        block = self._file.rows_between(int(chosen[0]), int(chosen[-1]) + 1)
        return block.take(pa.array(chosen - chosen[0]))

    @property
    def table(self) -> pa.Table:
        """Every column of every row, read anew: 1.6 GB for three million slides."""
        return pa.concat_tables([self._file.schema.empty_table(), *self._blocks(None)])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the rows but for where things lie: the same after moving or rewriting."""
        names = [name for name in self.column_names if name not in PLACES]
        schema = pa.schema([self._file.schema.field(name) for name in names])
        return hash_blocks(self._blocks(names), schema)

    def column(self, name: str) -> pa.ChunkedArray:
        """One column, read from the file.

        Raises:
            ValueError: If there is no such column.
        """
        self._refuse_unknown(name)
        column = self._file.column(name)
        return column if self._chosen is None else column.take(pa.array(self._chosen))

    def column_codes(self, name: str) -> tuple[NDArray[np.int64], int]:
        """A column's values as numbers: equal values get equal ones; nulls are a value too.

        Args:
            name: Any column of text, numbers or truth values.

        Returns:
            (N,) int64 from 0, in the order in which values first appear; how many there are.

        Raises:
            ValueError: If there is no such column, or it holds lists or structs.
        """
        column = self.column(name)
        if pa.types.is_nested(column.type):
            msg = (
                f"Catalogue.column_codes: needs a column of single values; got {name!r} of "
                f"{column.type}. Choose another column of {self.path}."
            )
            raise ValueError(msg)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
        codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        return codes, len(encoded.dictionary)

    def rows(self) -> list[SlideRow]:
        """Every row as an object, in order: for some thousands of slides."""
        return list(self.iter_rows())

    def iter_rows(self) -> Iterator[SlideRow]:
        """Every row as an object, in order, read a few thousand at a time."""
        for block in self._blocks(None):
            for part in block.to_batches(max_chunksize=4096):
                yield from (_row(record) for record in part.to_pylist())

    def row(self, slide_id: str) -> SlideRow:
        """One slide's row.

        Raises:
            CatalogueError: If there is no such slide.
        """
        return _row(self._record(slide_id, None))

    def select(self, **values: str | None) -> Catalogue:
        """The rows whose columns have these values (None: null), as a view of the same file.

        Raises:
            ValueError: If there is no such column.
        """
        keep = np.ones(len(self), dtype=np.bool_)
        for name, value in values.items():
            column = self.column(name)
            same = pc.is_null(column) if value is None else pc.equal(column, value)
            keep &= pc.fill_null(same, fill_value=False).to_numpy()
        return self.at(np.flatnonzero(keep))

    def at(self, numbers: NDArray[np.int64]) -> Catalogue:
        """The rows of these numbers, (n,) ascending from 0, as a view of the same file."""
        chosen = numbers if self._chosen is None else self._chosen[numbers]
        return Catalogue(self.path, self._file, self._masks, ids=self._ids, chosen=chosen)

    def spread(self, most: int) -> Catalogue:
        """The rows, or ``most`` of them evenly apart, as a view of the same file."""
        if len(self) <= most:
            return self
        return self.at(np.arange(most, dtype=np.int64) * len(self) // most)

    def location(self, slide_id: str) -> str:
        """Where a slide lies: an absolute path, or a URL."""
        return self._located(str(self._record(slide_id, ("uri",))["uri"]))

    def open_slide(self, slide_id: str) -> SlideReader:
        """Open a slide at the catalogue's mpp.

        Raises:
            CatalogueError: If there is no such slide in the catalogue.
            SlideError: If its file is gone, is not the one that was indexed, or cannot be opened.
        """
        record = self._record(slide_id, OF_OPENING)
        location = self._located(record["uri"])
        if is_remote(location):
            slide = open_slide(
                location, mpp=record["mpp"], version=record["version"], size=record["n_bytes"]
            )
        else:
            _refuse_other_file(location, record["n_bytes"])
            slide = open_slide(location, mpp=record["mpp"])
        if tuple(slide.size) != (record["width"], record["height"]):
            slide.close()
            then = f"{record['width']} x {record['height']}"
            now = f"{slide.size[0]} x {slide.size[1]}"
            raise SlideError(location, f"is {now} px; {then} when it was indexed. Index it again.")
        return slide

    def mask(self, slide_id: str) -> TissueMask:
        """A slide's tissue mask.

        Raises:
            CatalogueError: If the masks are missing, damaged, or of another catalogue.
        """
        return self._masks.mask(slide_id, **self._record(slide_id, OF_PICTURES))

    def thumbnail(self, slide_id: str) -> NDArray[np.uint8]:
        """A slide's thumbnail, (height, width, 3) uint8 RGB, at most 512 pixels long.

        Raises:
            CatalogueError: If the masks are missing, damaged, or of another catalogue.
        """
        record = self._record(slide_id, OF_PICTURES)
        del record["mask_mpp"]
        return self._masks.thumbnail(slide_id, **record)

    def _record(self, slide_id: str, columns: tuple[str, ...] | None) -> dict[str, Any]:
        row = self._ids.find(slide_id)
        if row is None or not self._has_chosen(row):
            message = f"has no slide {slide_id!r} among its {len(self)}. See its slide_id column."
            raise CatalogueError(self.path, message)
        return self._file.record(row, columns)

    def _has_chosen(self, row: int) -> bool:
        if self._chosen is None:
            return True
        place = int(np.searchsorted(self._chosen, row))
        return place < len(self._chosen) and int(self._chosen[place]) == row

    def _blocks(self, columns: list[str] | None) -> Iterator[pa.Table]:
        """The rows in parts, in order."""
        for start, block in self._file.blocks(columns):
            if self._chosen is None:
                yield block
                continue
            first, last = np.searchsorted(self._chosen, (start, start + len(block)))
            yield block.take(pa.array(self._chosen[first:last] - start))

    def _refuse_unknown(self, name: str) -> None:
        if name not in self.column_names:
            known = ", ".join(self.column_names)
            msg = f"Catalogue needs a column of {self.path}; got {name!r} ({known})."
            raise ValueError(msg)

    def _located(self, uri: str) -> str:
        return uri if is_remote(uri) else str(self.path.absolute().parent / uri)


def _refuse_other_file(location: str, n_bytes: int) -> None:
    try:
        now = Path(location).stat().st_size
    except OSError as error:
        msg = f"was indexed but cannot be found: {error.strerror}. Put it back, or index again."
        raise SlideError(location, msg) from error
    if now != n_bytes:
        msg = f"has {now} bytes; {n_bytes} when it was indexed. Index it again."
        raise SlideError(location, msg)


def _row(record: dict[str, Any]) -> SlideRow:
    fixed = {name: record[name] for name in FIXED if name not in PLACES or name == "uri"}
    fixed |= {name: tuple(record[name]) for name in LISTS}
    labels = {k: str(v) for k, v in record.items() if k not in FIXED and v is not None}
    return SlideRow(**fixed, labels=labels)
