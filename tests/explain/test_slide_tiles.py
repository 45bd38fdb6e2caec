"""The contact sheet: the right tiles, the pixels of the slide at the bag's resolution."""

import numpy as np
from PIL import Image
from scored_tiles import scored
from synthetic_slides import ArraySlide, tissue_like

from anlage.errors import SlideError
from anlage.explain.pictures import CAPTION_PX, GAP_PX, LINE_PX
from anlage.explain.slide_tiles import CELL_PX, read_top_and_bottom, write_contact_sheet
from anlage.slides.levels import read_tile


def test_tiles_are_read_where_they_lie_and_captioned(tmp_path) -> None:
    slide = ArraySlide([tissue_like(500, 390)], mpp=0.5)
    corners = [[x, y] for y in (0, 64, 128) for x in (0, 64, 128, 192)]
    weights = np.arange(12) / 66  # the first has none
    tiles = scored(corners, weights, edge=64.0, mpp=0.5, tile_px=32)
    shown = read_top_and_bottom(slide, tiles, tiles.scores[0], n=3)
    assert [tile.row for tile in shown] == [11, 10, 9, 1, 2, 3]
    assert [tile.side for tile in shown] == ["top"] * 3 + ["bottom"] * 3
    for tile in shown:
        assert list(tile.corner) == corners[tile.row]
        wanted = read_tile(slide, *tile.corner, size_px=32, mpp=1.0)
        np.testing.assert_array_equal(tile.pixels, wanted)
    assert shown[0].caption == "top 1\n0.167 (100.0%)\n192, 128"

    write_contact_sheet(tmp_path / "tiles.png", shown)
    page = np.asarray(Image.open(tmp_path / "tiles.png"))
    y = GAP_PX + CAPTION_PX + 2 * LINE_PX
    cell = page[y : y + CELL_PX, GAP_PX : GAP_PX + CELL_PX]
    np.testing.assert_array_equal(cell[::6, ::6], shown[0].pixels)
    below = page[len(page) // 2 + y :][:CELL_PX, GAP_PX : GAP_PX + CELL_PX]
    np.testing.assert_array_equal(below[::6, ::6], shown[3].pixels)


class DamagedSlide(ArraySlide):
    """Its right half cannot be read."""

    def _read_inside(self, level, left, top, size):
        if left + size.width > 250:
            raise SlideError(self.path, "is damaged")
        return super()._read_inside(level, left, top, size)


def test_a_tile_that_cannot_be_read_is_grey_and_said_to_be(tmp_path) -> None:
    slide = DamagedSlide([tissue_like(500, 390)], mpp=0.5)
    tiles = scored([[0, 0], [300, 0]], [0.2, 0.8], edge=64.0, mpp=0.5, tile_px=32)
    top, bottom = read_top_and_bottom(slide, tiles, tiles.scores[0], n=1)
    assert (top.pixels == 200).all()
    assert top.caption.startswith("top 1: unreadable\n0.8 ")
    assert bottom.is_readable
    write_contact_sheet(tmp_path / "tiles.png", [top, bottom])
