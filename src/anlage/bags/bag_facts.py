"""What has to be known of a bag before it is used: read from its header, a few bytes a slide."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anlage.bags.bag import BagAttributes, BagHeader
from anlage.bags.grid_cells import grid_cells, n_in_taken_cells
from anlage.bags.store import read_bag_header
from anlage.errors import BagError


@dataclass(frozen=True, slots=True)
class BagFacts:
    """One bag of a set.

    Attributes:
        slide_id: The slide.
        place: Where the bag is.
        n_tiles: Its tiles.
        width: Embedding width D.
        attributes: What it was made from.
        content_sha256: SHA-256 over features and coords, as it states it.
        n_crowded: Tiles whose corner, or cell of a grid, an earlier tile has already.
    """

    slide_id: str
    place: str
    n_tiles: int
    width: int
    attributes: BagAttributes
    content_sha256: str
    n_crowded: int


def bag_facts(place: str, slide_id: str, *, max_tiles: int, grid_um: float | None) -> BagFacts:
    """Read the header of a bag and check all that can be checked without its features.

    Args:
        place: Where it is.
        slide_id: The slide that it should be of.
        max_tiles: Most tiles that it may hold.
        grid_um: Edge of a cell of the slide encoder's grid, micrometres; None to count only tiles
            with the same corner as crowded.

    Raises:
        BagError: If it cannot be read, is of another slide, too large, or has a tile that does not
            begin on the slide.
    """
    header = read_bag_header(place)
    if header.slide_id != slide_id:
        raise BagError(place, f"is the bag of slide {header.slide_id!r}. Rename it.")
    if len(header.coords) > max_tiles:
        msg = f"needs at most {max_tiles:,} tiles; got {len(header.coords):,}. Embed larger tiles."
        raise BagError(place, msg)
    _refuse_corners_off_the_slide(place, header)
    made = header.attributes
    taken = header.coords
    if grid_um is not None:
        taken = grid_cells(taken, slide_mpp=made.slide_mpp, grid_um=grid_um)
    return BagFacts(
        slide_id=slide_id,
        place=place,
        n_tiles=len(header.coords),
        width=header.width,
        attributes=made,
        content_sha256=header.content_sha256,
        n_crowded=n_in_taken_cells(taken),
    )


def _refuse_corners_off_the_slide(place: str, header: BagHeader) -> None:
    made = header.attributes
    size = np.array([made.slide_width_px, made.slide_height_px])
    is_off_L = ((header.coords < 0) | (header.coords >= size)).any(axis=1)
    if is_off_L.any():
        tile = int(np.argmax(is_off_L))
        x, y = header.coords[tile].tolist()
        msg = (
            f"needs corners on the slide's {size[0]} x {size[1]} px; got ({x}, {y}) of tile {tile} "
            f"and {int(is_off_L.sum()) - 1} others. Embed the slide again."
        )
        raise BagError(place, msg)
