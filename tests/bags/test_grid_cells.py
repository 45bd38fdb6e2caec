"""Cells against exact rational arithmetic."""

from fractions import Fraction
from math import floor

import numpy as np
import pytest

from anlage.bags.grid_cells import grid_cells, n_in_taken_cells
from anlage.tiles.grid import tile_grid
from anlage.tiles.spec import TileSpec


@pytest.mark.parametrize("slide_mpp", [0.25, 0.2528, 0.5, 0.12125, 1.0])
def test_cells_are_the_squares_that_corners_lie_in(slide_mpp):
    corner_L2 = np.random.default_rng(0).integers(0, 200_000, (500, 2))
    cell_L2 = grid_cells(corner_L2, slide_mpp=slide_mpp, grid_um=128.0)
    assert cell_L2.dtype == np.int64
    micrometres = [[(int(c) + 1) * Fraction(slide_mpp) for c in xy] for xy in corner_L2]
    np.testing.assert_array_equal(cell_L2, [[floor(c / 128) for c in xy] for xy in micrometres])


@pytest.mark.parametrize("slide_mpp", [0.2528, 0.2489, 0.4991, 0.23])
def test_a_regular_grid_stays_one_whichever_way_its_corners_were_rounded(slide_mpp):
    """256 px at 0.5 mpp do not divide into level-0 pixels; cells still count 0, 1, 2, ..."""
    column = np.arange(1000)
    exact = column * 128.0 / slide_mpp
    for corner in (np.floor(exact + 1e-6), np.round(exact), np.ceil(exact)):
        corner_L2 = np.stack([corner, corner[::-1]], axis=1).astype(np.int64)
        cell_L2 = grid_cells(corner_L2, slide_mpp=slide_mpp, grid_um=128.0)
        np.testing.assert_array_equal(cell_L2, np.stack([column, column[::-1]], axis=1))
        assert n_in_taken_cells(cell_L2) == 0


@pytest.mark.parametrize("slide_mpp", [0.2528, 0.2489, 0.4991, 0.23])
def test_the_tiles_of_a_tissue_mask_have_a_cell_each(slide_mpp):
    corner_L2 = tile_grid(
        np.ones((300, 400), bool),
        mask_mpp=32.0,
        slide_mpp=slide_mpp,
        spec=TileSpec(size_px=256, mpp=0.5, stride_px=256),
    )
    cell_L2 = grid_cells(corner_L2, slide_mpp=slide_mpp, grid_um=128.0)
    wanted = [(x, y) for y in range(75) for x in range(100)]
    np.testing.assert_array_equal(cell_L2, wanted)


def test_a_corner_one_pixel_short_of_a_cell_is_in_it_unlike_in_the_published_code():
    corner = np.array([0, 254, 255, 256, 510, 511, 512])
    cell_L2 = grid_cells(np.stack([corner, corner], axis=1), slide_mpp=0.5, grid_um=128.0)
    differs = cell_L2[:, 0] != corner // 256
    assert corner[differs].tolist() == [255, 511]


def test_overlapping_and_repeated_tiles_share_cells():
    corner_L2 = np.array([[0, 0], [256, 0], [512, 0], [0, 0]])  # half of a 128 um cell apart
    cell_L2 = grid_cells(corner_L2, slide_mpp=0.25, grid_um=128.0)
    np.testing.assert_array_equal(cell_L2, [[0, 0], [0, 0], [1, 0], [0, 0]])
    assert n_in_taken_cells(cell_L2) == 2
    many_L2 = np.random.default_rng(1).integers(-3, 40, (1000, 2))
    assert n_in_taken_cells(many_L2) == 1000 - len({tuple(cell) for cell in many_L2.tolist()})
    assert n_in_taken_cells(cell_L2[:0]) == 0


@pytest.mark.parametrize(
    ("slide_mpp", "grid_um"), [(0.0, 128), (0.5, -1), (np.nan, 128), (0.5, np.inf)]
)
def test_a_grid_without_size_is_refused(slide_mpp, grid_um):
    with pytest.raises(ValueError, match="needs slide_mpp and grid_um > 0"):
        grid_cells(np.zeros((1, 2)), slide_mpp=slide_mpp, grid_um=grid_um)
