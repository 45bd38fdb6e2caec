"""One picture of a TIFF as a grid of encoded tiles, of which only the touched ones are decoded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from anlage.errors import SlideError
from anlage.geometry import Size
from anlage.slides.formats.tile_codec import DecodeError, TileCodec
from anlage.slides.rectangle import WHITE
from anlage.slides.storage.byte_source import ByteSource, Range

LEFT_OUT = (0, 0)  # place of a tile that its writer left out


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

    @cached_property
    def reductions(self) -> tuple[int, ...]:
        """Factors at which it can be decoded, smallest first; 1 is always there."""
        return tuple(n for n in self.codec.reductions(self.tile) if min(self.size) >= n)

    def refuse_if_outside(self, file: ByteSource) -> None:
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

    def place(self, index: int) -> Range:
        """Where the bytes of a tile lie: offset and count."""
        return self.offsets.item(index), self.counts.item(index)

    def decode(
        self,
        index: int,
        data: bytes,
        *,
        path: str,
        reduce: int = 1,
        buffer: NDArray[np.uint8] | None = None,
    ) -> NDArray[np.uint8]:
        """Pixels of one tile, (height, width, 3) uint8 RGB of it reduced, not to be written to.

        Args:
            index: Number of the tile, row by row.
            data: Its bytes.
            path: The file, for the error.
            reduce: One of ``reductions``.
            buffer: Room that the result may be in, as for ``TileCodec.decode``.

        Raises:
            SlideError: If the tile is damaged; it names the tile.
        """
        width, height = self.tile
        if not data and self.place(index) == LEFT_OUT:
            return np.broadcast_to(np.uint8(WHITE), (height // reduce, width // reduce, 3))
        if self.is_stripped:
            height = min(height, self.size.height - index * height)
        try:
            return self.codec.decode(data, height=height, width=width, reduce=reduce, buffer=buffer)
        except DecodeError as error:
            offset, count = self.place(index)
            raise SlideError(
                path,
                f"{self._where(index)} (bytes {offset} to {offset + count}) is damaged: {error}.",
            ) from error

    def _where(self, index: int) -> str:
        row, column = divmod(index, self.n_across)
        return f"{self.name}, tile row {row}, column {column}"
