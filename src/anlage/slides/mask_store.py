"""Tissue masks and thumbnails of many slides in one Parquet file, fetched a few at a time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from anlage.errors import CatalogueError
from anlage.files import replace_whole
from anlage.slides.masks import TissueMask, decode_mask, encode_mask

FORMAT_KEY, FORMAT = b"anlage.format", b"catalogue-masks/1"
ROWS_PER_GROUP = 8
N_CACHED_MASKS = 16
THUMBNAIL_QUALITY = 85
SCHEMA = pa.schema(
    [
        pa.field("slide_id", pa.string(), nullable=False),
        pa.field("fingerprint", pa.string(), nullable=False),
        pa.field("mask_png", pa.binary(), nullable=False),
        pa.field("mask_mpp", pa.float64(), nullable=False),
        pa.field("thumbnail_jpeg", pa.binary(), nullable=False),
        pa.field("thumbnail_mpp", pa.float64(), nullable=False),
    ],
    metadata={FORMAT_KEY: FORMAT},
)
REMEDY = "Index the slides again with `anlage index`."


def masks_path(catalogue: Path) -> Path:
    """The masks file of a catalogue: ``slides.masks.parquet`` beside ``slides.parquet``."""
    return catalogue.with_name(f"{catalogue.stem}.masks.parquet")


@dataclass(frozen=True, slots=True)
class Pictures:
    """What is kept of a slide's look.

    Attributes:
        mask_png: 1-bit PNG of the tissue mask.
        mask_mpp: Its resolution, micrometres per pixel.
        thumbnail_jpeg: The slide, small.
        thumbnail_mpp: Its resolution, micrometres per pixel.
    """

    mask_png: bytes
    mask_mpp: float
    thumbnail_jpeg: bytes
    thumbnail_mpp: float


def encode_pictures(
    tissue: TissueMask, thumbnail: NDArray[np.uint8], thumbnail_mpp: float
) -> Pictures:
    """Compress a mask without loss and an RGB thumbnail as JPEG."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, THUMBNAIL_QUALITY]
    _, jpeg = cv2.imencode(".jpg", cv2.cvtColor(thumbnail, cv2.COLOR_RGB2BGR), quality)
    return Pictures(encode_mask(tissue.mask), tissue.mpp, jpeg.tobytes(), thumbnail_mpp)


class MaskWriter:
    """Writes pictures as they come, so that those of all slides are never held at once."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self._writer = writer
        self._waiting: list[dict[str, Any]] = []

    def add(self, slide_id: str, fingerprint: str, pictures: Pictures) -> None:
        """Append one slide."""
        self._waiting.append(
            {
                "slide_id": slide_id,
                "fingerprint": fingerprint,
                "mask_png": pictures.mask_png,
                "mask_mpp": pictures.mask_mpp,
                "thumbnail_jpeg": pictures.thumbnail_jpeg,
                "thumbnail_mpp": pictures.thumbnail_mpp,
            }
        )
        if len(self._waiting) == ROWS_PER_GROUP:
            self.flush()

    def flush(self) -> None:
        """Write what waits as one row group."""
        if self._waiting:
            self._writer.write_table(pa.Table.from_pylist(self._waiting, schema=SCHEMA))
            self._waiting.clear()


@contextmanager
def write_masks(path: Path) -> Iterator[MaskWriter]:
    """Write a masks file whole or not at all: it gets its name when the block ends well."""
    with (
        replace_whole(path) as beside,
        pq.ParquetWriter(beside, SCHEMA, compression="none") as parquet,  # PNG, JPEG are already
    ):
        writer = MaskWriter(parquet)
        yield writer
        writer.flush()


class MaskStore:
    """Reads pictures by slide; opened at the first use, safe to share between threads.

    Attributes:
        path: The masks file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file: pq.ParquetFile | None = None
        self._places: dict[str, tuple[int, int]] = {}
        self._masks: OrderedDict[str, TissueMask] = OrderedDict()

    def mask(self, slide_id: str, fingerprint: str) -> TissueMask:
        """A slide's mask, from the cache of the last 16 or from its row group.

        Args:
            slide_id: The slide.
            fingerprint: Of its file, as the catalogue has it; the masks must be of the same.

        Raises:
            CatalogueError: If the file is missing, damaged, or does not belong to the catalogue.
        """
        with self._lock:
            found = self._masks.get(slide_id)
            if found is None:
                record = self._record(slide_id, fingerprint, ["mask_png", "mask_mpp"])
                found = TissueMask(self._decode(record["mask_png"]), record["mask_mpp"])
                found.mask.setflags(write=False)
            self._masks[slide_id] = found
            self._masks.move_to_end(slide_id)
            while len(self._masks) > N_CACHED_MASKS:
                self._masks.popitem(last=False)
            return found

    def thumbnail(self, slide_id: str, fingerprint: str) -> NDArray[np.uint8]:
        """A slide's thumbnail, (height, width, 3) uint8 RGB; as ``mask``."""
        with self._lock:
            record = self._record(slide_id, fingerprint, ["thumbnail_jpeg"])
        jpeg = np.frombuffer(record["thumbnail_jpeg"], dtype=np.uint8)
        picture = cv2.imdecode(jpeg, cv2.IMREAD_COLOR) if jpeg.size else None
        if picture is None:
            raise CatalogueError(self.path, f"holds no thumbnail of {slide_id!r}. {REMEDY}")
        return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), dtype=np.uint8)

    def _decode(self, png: bytes) -> NDArray[np.bool_]:
        try:
            return decode_mask(png)
        except ValueError as error:
            raise CatalogueError(self.path, f"is damaged: {error} {REMEDY}") from error

    def _record(self, slide_id: str, fingerprint: str, columns: list[str]) -> dict[str, Any]:
        """One slide's values; reads one row group of those columns."""
        try:
            if self._file is None:
                self._open()
            if slide_id not in self._places:
                raise CatalogueError(self.path, f"has no mask of {slide_id!r}. {REMEDY}")
            group, row = self._places[slide_id]
            assert self._file is not None
            table = self._file.read_row_group(group, columns=["fingerprint", *columns])
        except FileNotFoundError as error:
            message = f"does not exist; it belongs beside the catalogue. {REMEDY}"
            raise CatalogueError(self.path, message) from error
        except (pa.ArrowException, OSError) as error:
            raise CatalogueError(self.path, f"is damaged: {error}. {REMEDY}") from error
        record: dict[str, Any] = table.slice(row, 1).to_pylist()[0]
        if record["fingerprint"] != fingerprint:
            message = f"holds the mask of another version of {slide_id!r}. {REMEDY}"
            raise CatalogueError(self.path, message)
        return record

    def _open(self) -> None:
        file = pq.ParquetFile(self.path)
        stated = (file.schema_arrow.metadata or {}).get(FORMAT_KEY, b"none")
        if stated != FORMAT:
            got = stated.decode(errors="replace")
            message = f"needs format {FORMAT.decode()!r}; got {got!r}. {REMEDY}"
            raise CatalogueError(self.path, message)
        for group in range(file.num_row_groups):
            ids = file.read_row_group(group, columns=["slide_id"]).column(0).to_pylist()
            self._places |= {slide_id: (group, row) for row, slide_id in enumerate(ids)}
        self._file = file
