"""The block of a slide's own tiles that one region decodes, and the corners that stay within it.

Frames: level-0 pixels for corners, pixels of one level for the block.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, sqrt

from anlage.geometry import Size, level_px
from anlage.tiles.grid import ROUNDING
from anlage.tiles.places import CornerRange


@dataclass(frozen=True, slots=True)
class RegionShape:
    """What decides the block of a region.

    Attributes:
        n_tiles: Tiles that share a region.
        edge: Tile edge, level-0 pixels, need not be whole.
        downsample: Of the level that tiles are read from, level-0 pixels per pixel.
        native: The file's own tiles on that level, pixels; 0 where not known.
    """

    n_tiles: int
    edge: float
    downsample: float
    native: Size

    def corners_around(self, corner: tuple[int, int], u_block: tuple[float, float]) -> CornerRange:
        """The corners of all tiles that one block around an anchor holds, the anchor's included.

        The block is whole native tiles, ``sqrt(n_tiles)`` tile edges wide rounded down to them
        (one edge rounded up if that is more), or as many as the anchor touches. Where native tiles
        are not known it is ``sqrt(n_tiles)`` tile edges wide. It may reach over the slide's edge:
        were it kept inside, tiles at the edge would lie in fewer blocks than others do, and be
        drawn the less often.

        Args:
            corner: (x, y) of the anchor, level-0 pixels.
            u_block: Two numbers in [0, 1) that choose among the blocks that hold the anchor.
        """
        ends = [
            self._aligned(*axis) if axis[1] > 0 else self._unaligned(axis[0], axis[2])
            for axis in zip(corner, self.native, u_block, strict=True)
        ]
        return CornerRange(*ends[0], *ends[1])

    def _aligned(self, corner: int, native: int, u: float) -> tuple[int, int]:
        edge_px = self.edge / self.downsample
        read_px = ceil(edge_px - ROUNDING) + 1  # one more is read where a level is 2 % too coarse
        at = level_px(corner, downsample=self.downsample)
        first, last = at // native, (at + read_px - 1) // native
        n_wanted = max(floor(sqrt(self.n_tiles) * edge_px / native), ceil(edge_px / native))
        n_across = max(n_wanted, last - first + 1)
        start = last - n_across + 1 + floor(u * (n_across - (last - first)))
        first_px, last_px = start * native, (start + n_across) * native - read_px
        lowest = ceil((first_px - 0.5) * self.downsample)
        highest = ceil((last_px + 0.5) * self.downsample) - 1
        return min(lowest, corner), max(highest, corner)

    def _unaligned(self, corner: int, u: float) -> tuple[int, int]:
        reach = (sqrt(self.n_tiles) - 1) * self.edge
        return ceil(corner - u * reach), floor(corner + (1 - u) * reach)
