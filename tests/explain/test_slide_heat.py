"""Where a tile is painted, against a loop over pixels; overlaps averaged; nothing smoothed."""

from dataclasses import replace

import numpy as np
import pytest
from scored_tiles import scored

from anlage.explain.slide_heat import (
    WITHOUT_WEIGHT,
    Heatmap,
    colours_of,
    halved,
    overlay_downsample,
    pixel_spans,
)
from anlage.geometry import Size


def slow_ranks(tiles, downsample):
    """The mean rank of the tiles whose rectangle holds the centre of each pixel."""
    width, height = (int(np.ceil(px / downsample)) for px in tiles.slide_size)
    rank = tiles.scores[0].rank
    mean, is_tile = np.full((height, width), np.nan), np.zeros((height, width), bool)
    for row in range(height):
        for column in range(width):
            x, y = (column + 0.5) * downsample, (row + 0.5) * downsample
            inside = [
                tile
                for tile, (left, top) in enumerate(tiles.corner_L2.tolist())
                if left <= x < left + tiles.edge_level0_px and top <= y < top + tiles.edge_level0_px
            ]
            is_tile[row, column] = bool(inside)
            ranks = [rank[tile] for tile in inside if not np.isnan(rank[tile])]
            if ranks:
                mean[row, column] = np.mean(ranks)
    return mean, is_tile


@pytest.mark.parametrize(("edge", "downsample"), [(64.0, 16), (57.3, 8), (40.0, 13.7), (9.0, 16)])
def test_every_pixel_equals_the_loop(generator, edge, downsample) -> None:
    corners = generator.integers(-20, 480, (60, 2))  # some over the edge, many over each other
    weights = generator.random(60) * (generator.random(60) > 0.2)
    tiles = scored(corners, weights, edge=edge)
    heatmap = Heatmap(tiles=tiles, score=tiles.scores[0], downsample=downsample)
    mean, is_tile = slow_ranks(tiles, downsample)
    for top, bottom in [(0, heatmap.size.height), (5, 11)]:
        found, found_is_tile = heatmap.ranks(top, bottom)
        np.testing.assert_allclose(found, mean[top:bottom], rtol=1e-6)
        np.testing.assert_array_equal(found_is_tile, is_tile[top:bottom])


def test_tiles_that_adjoin_share_no_pixel_and_leave_none() -> None:
    edge = 221.87
    corners = np.rint(np.arange(40)[:, None] * edge * [1, 0]).astype(np.int64)
    spans = pixel_spans(corners, edge, downsample=8)
    # stored corners are whole, so that neighbours may be off by what rounding takes: one pixel
    assert np.abs(spans[1:, 0] - spans[:-1, 2]).max() <= 1
    exact = pixel_spans(np.arange(40)[:, None] * np.array([256, 0]), 256.0, downsample=8)
    assert (exact[1:, 0] == exact[:-1, 2]).all()
    assert (exact[:, 2] - exact[:, 0] == 32).all()


def test_colours_on_white_and_over_a_picture() -> None:
    tiles = scored([[0, 0], [64, 0], [128, 64]], [0.2, 0.7, 0.0], size=(256, 128))
    heatmap = Heatmap(tiles=tiles, score=tiles.scores[0], downsample=16)
    bare = heatmap.whole(None)
    assert bare.shape == (8, 16, 3)
    assert (bare[:4, :4] == colours_of(np.array(0.5))).all()
    assert (bare[:4, 4:8] == colours_of(np.array(1.0))).all()
    assert (bare[4:, 8:12] == WITHOUT_WEIGHT).all()
    is_tile = np.zeros((8, 16), bool)
    is_tile[:4, :8] = is_tile[4:, 8:12] = True
    assert (bare[~is_tile] == 255).all()
    picture = np.full((8, 16, 3), (200, 100, 150), np.uint8)
    over = heatmap.whole(picture)
    assert (over[~is_tile] == (200, 100, 150)).all()
    wanted = 0.55 * colours_of(np.array(1.0)) + 0.45 * np.array([200, 100, 150])
    assert np.abs(over[0, 5] - wanted).max() <= 1


def test_colours_grow_lighter() -> None:
    lightness = colours_of(np.linspace(0, 1, 30)) @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(lightness) > 0).all()


@pytest.mark.parametrize(
    ("size", "mpp", "wanted"),
    [
        ((2000, 1500), 1.0, 1),
        ((3000, 900), 1.0, 2),
        ((9000, 900), 0.25, 8),
        ((100_000, 100_000), 0.25, 16),
        ((300_000, 90_000), 0.25, 64),
    ],
)
def test_an_overlay_is_neither_too_fine_nor_too_large(size, mpp, wanted) -> None:
    assert overlay_downsample(Size(*size), slide_mpp=mpp) == wanted


def test_halving_keeps_the_scale_of_odd_pictures() -> None:
    picture = np.arange(5 * 3 * 3, dtype=np.uint8).reshape(5, 3, 3)
    small = halved(picture)
    assert small.shape == (3, 2, 3)
    np.testing.assert_array_equal(small[2, 1], picture[4, 2])
    tiles = scored([[0, 0]], [1.0], size=(500, 390))
    heatmap = Heatmap(tiles=tiles, score=tiles.scores[0], downsample=4)
    coarser = replace(heatmap, downsample=8)
    assert coarser.size == Size(63, 49)
    assert halved(heatmap.whole(None)).shape[:2] == (49, 63)
