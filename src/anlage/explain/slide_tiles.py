"""The tiles with the most and the least weight, read from the slide, as a contact sheet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anlage.errors import SlideError
from anlage.explain.pictures import sheet
from anlage.explain.slide_scores import ScoredTiles, TileScore, top_and_bottom
from anlage.files import replace_whole
from anlage.slides.levels import TileWindow
from anlage.slides.reader import SlideReader
from anlage.slides.regions import read_tiles

Pixels = NDArray[np.uint8]
CELL_PX, COLUMNS = 192, 6
UNREADABLE = 200  # grey level


@dataclass(frozen=True, kw_only=True, eq=False)
class ShownTile:
    """One tile with what is known of it.

    Attributes:
        side: ``top`` or ``bottom``.
        place: From 1 on its side.
        row: In the bag.
        corner: (x, y), level-0 pixels.
        weight: Its score.
        rank: Its percentile rank, 0 to 1.
        pixels: (tile_px, tile_px, 3) uint8 RGB, as the tile encoder saw it; grey if unreadable.
        is_readable: Whether the slide gave the pixels.
    """

    side: str
    place: int
    row: int
    corner: tuple[int, int]
    weight: float
    rank: float
    pixels: Pixels
    is_readable: bool

    @property
    def caption(self) -> str:
        """Side and place, weight and percentile, corner: three lines."""
        x, y = self.corner
        told = f"{self.side} {self.place}" + ("" if self.is_readable else ": unreadable")
        return f"{told}\n{self.weight:.3g} ({self.rank:.1%})\n{x}, {y}"


def read_top_and_bottom(
    slide: SlideReader, tiles: ScoredTiles, score: TileScore, *, n: int
) -> list[ShownTile]:
    """Read the tiles with the most weight, and those with the least above 0.

    Args:
        slide: The slide that the bag was made from.
        tiles: Its tiles; they are read at their resolution, edge and colour.
        score: By which they are ordered.
        n: Most of each.

    Returns:
        The top ones, largest first, then the bottom ones, smallest first.
    """
    top, bottom = top_and_bottom(score.weight_L, n=n)
    sides = [("top", place, row) for place, row in enumerate(top.tolist(), start=1)]
    sides += [("bottom", place, row) for place, row in enumerate(bottom.tolist(), start=1)]
    corners = tiles.corner_L2[[row for *_, row in sides]].tolist()
    windows = [TileWindow(x, y, tiles.tile_px, tiles.mpp) for x, y in corners]
    shown = []
    for (side, place, row), pixels in zip(
        sides, read_tiles(slide, windows, colour=tiles.colour), strict=True
    ):
        x, y = tiles.corner_L2[row].tolist()
        is_readable = not isinstance(pixels, SlideError)
        grey = np.full((tiles.tile_px, tiles.tile_px, 3), UNREADABLE, np.uint8)
        shown.append(
            ShownTile(
                side=side,
                place=place,
                row=row,
                corner=(x, y),
                weight=float(score.weight_L[row]),
                rank=float(score.rank[row]),
                pixels=grey if isinstance(pixels, SlideError) else pixels,
                is_readable=is_readable,
            )
        )
    return shown


def write_contact_sheet(path: Path, shown: list[ShownTile]) -> None:
    """Write a PNG: the top tiles in rows of six, then the bottom ones, captions above each."""
    sides = [[tile for tile in shown if tile.side == side] for side in ("top", "bottom")]
    parts = [
        sheet(
            [tile.pixels for tile in side],
            [tile.caption for tile in side],
            cell_px=CELL_PX,
            n_columns=COLUMNS,
        )
        for side in sides
        if side
    ]
    width = max(part.shape[1] for part in parts)
    page = Image.new("RGB", (width, sum(len(part) for part in parts)), "white")
    top = 0
    for part in parts:
        page.paste(Image.fromarray(part), (0, top))
        top += len(part)
    with replace_whole(path) as beside:
        page.save(beside, format="png")
