"""One picture of a TIFF as a grid of encoded tiles, of which only the touched ones are decoded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anlage.errors import SlideError
from anlage.geometry import Size
from anlage.slides.file_bytes import FileBytes
from anlage.slides.reader import WHITE
from anlage.slides.tile_codec import DecodeError, TileCodec


@dataclass(frozen=True, eq=False)
class TiledPicture:
    """Where the tiles of one picture lie in its file. Strips are tiles as wide as the picture.

    Attributes:
        name: What it is, for errors: "level 0", "label".
        size: Pixels of the picture.
        tile: Pixels of a tile; those at the right and bottom edge reach beyond the picture.
        offsets: (N,) int64 first byte of each tile, row by row.
        counts: (N,) int64 bytes of each tile. A tile of no bytes at offset 0 was left out by
            the writer, and is white.
        codec: How the tiles are encoded.
        is_stripped: Tiles are strips: the last one is only as high as the picture still is.
    """

    name: str
    size: Size
    tile: Size
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    codec: TileCodec
    is_stripped: bool = False

    @property
    def n_across(self) -> int:
        """Tiles in a row."""
        return -(-self.size.width // self.tile.width)

    @property
    def n_down(self) -> int:
        """Tiles in a column."""
        return -(-self.size.height // self.tile.height)

    def refuse_if_outside(self, file: FileBytes) -> None:
        """Check the whole index against the length of the file.

        Raises:
            SlideError: If the number of tiles is wrong, or the bytes of one are not in the file.
        """
        n_tiles = self.n_across * self.n_down
        if len(self.offsets) != n_tiles or len(self.counts) != n_tiles:
            raise SlideError(
                file.path,
                f"{self.name} needs {n_tiles} tiles in its index; got {len(self.offsets)} places "
                f"and {len(self.counts)} lengths. Copy the file again from its source.",
            )
        end = self.offsets + self.counts
        wrong = np.flatnonzero((end > file.size) | (self.counts < 0) | (self.offsets < 0))
        if len(wrong):
            raise SlideError(
                file.path,
                f"is cut short or damaged: {self._where(int(wrong[0]))} ends at byte "
                f"{end[wrong[0]]} of {file.size}, and {len(wrong)} of {n_tiles} tiles of "
                f"{self.name} do not lie in the file. Copy it again from its source.",
            )

    def read(self, file: FileBytes, left: int, top: int, size: Size) -> NDArray[np.uint8]:
        """A rectangle that lies wholly inside the picture.

        Args:
            file: The file the picture is in.
            left: First column, pixels of the picture.
            top: First row, pixels of the picture.
            size: Pixels to read.

        Returns:
            (size.height, size.width, 3) uint8 RGB, a new array.

        Raises:
            SlideError: If a touched tile is damaged; it names the tile.
        """
        region = np.empty((size.height, size.width, 3), np.uint8)
        right, bottom = left + size.width, top + size.height
        for row in range(top // self.tile.height, (bottom - 1) // self.tile.height + 1):
            y = row * self.tile.height
            y0, y1 = max(top, y), min(bottom, y + self.tile.height)
            for column in range(left // self.tile.width, (right - 1) // self.tile.width + 1):
                x = column * self.tile.width
                x0, x1 = max(left, x), min(right, x + self.tile.width)
                tile = self._tile(file, row * self.n_across + column)
                part = WHITE if tile is None else tile[y0 - y : y1 - y, x0 - x : x1 - x]
                region[y0 - top : y1 - top, x0 - left : x1 - left] = part
        return region

    def _tile(self, file: FileBytes, index: int) -> NDArray[np.uint8] | None:
        offset, count = int(self.offsets[index]), int(self.counts[index])
        if offset == 0 and count == 0:
            return None
        height = self.tile.height
        if self.is_stripped:
            height = min(height, self.size.height - index * height)
        data = file.read(offset, count)
        try:
            return self.codec.decode(data, height=height, width=self.tile.width)
        except DecodeError as error:
            raise SlideError(
                file.path,
                f"{self._where(index)} (bytes {offset} to {offset + count}) is damaged: {error}.",
            ) from error

    def _where(self, index: int) -> str:
        row, column = divmod(index, self.n_across)
        return f"{self.name}, tile row {row}, column {column}"
