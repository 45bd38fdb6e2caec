from __future__ import annotations

from math import ceil, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anlage.geometry import Size, level_px
from anlage.tiles.places import find_places
from anlage.tiles.region_block import RegionShape

SHARES = st.floats(0, 1, exclude_max=True)


@settings(max_examples=300, deadline=None)
@given(
    n_tiles=st.sampled_from([2, 4, 16]),
    native=st.sampled_from([100, 240, 256, 512]),
    downsample=st.sampled_from([1.0, 2.0, 4.0, 4.0007, 15.98]),
    edge_px=st.floats(30, 700),
    length=st.integers(20_000, 40_000),
    at=SHARES,
    u=SHARES,
)
def test_tiles_of_a_region_touch_no_native_tile_outside_its_block(
    n_tiles: int, native: int, downsample: float, edge_px: float, length: int, at: float, u: float
) -> None:
    edge = edge_px * downsample
    corner = int(at * (length - edge))
    shape = RegionShape(n_tiles, edge, downsample, Size(native, native))
    allowed = shape.corners_around((corner, corner), (u, u))
    assert allowed.x_first <= corner <= allowed.x_last
    assert (allowed.x_first, allowed.x_last) == (allowed.y_first, allowed.y_last)
    first = level_px(allowed.x_first, downsample=downsample) // native
    last = (level_px(allowed.x_last, downsample=downsample) + ceil(edge_px) - 1) // native
    wanted = max(int(sqrt(n_tiles) * edge_px / native), ceil(edge_px / native))
    anchor = level_px(corner, downsample=downsample)
    touched = (anchor + ceil(edge_px)) // native - anchor // native + 1
    assert last - first + 1 <= max(wanted, touched)


@pytest.mark.parametrize(("n_tiles", "across"), [(4, 4), (16, 8)])
def test_blocks_of_a_40x_slide(n_tiles: int, across: int) -> None:
    """256 px at 0.5 mpp from 0.25 mpp in tiles of 240 px: 4 x 4 for four, 8 x 8 for sixteen."""
    shape = RegionShape(n_tiles, 512.0, 1.0, Size(240, 240))
    starts = set()
    for step in range(240):
        for u in (0.0, 0.4, 0.99):
            allowed = shape.corners_around((30_000 + step, 20_000), (u, u))
            assert allowed.x_first % 240 == 0
            assert allowed.x_last - allowed.x_first == across * 240 - 513
            starts.add(allowed.x_first)
    assert len(starts) > 1


@pytest.mark.parametrize("native", [0, 100])
def test_every_place_is_as_likely_to_share_a_region_also_at_the_edge(native: int) -> None:
    """All anchors and all blocks around each, all places in a block as likely."""
    edge, length = 100, 1000
    mask = np.ones((length // 20, length // 20), bool)
    size = Size(length, length)
    places = find_places(mask, slide_size=size, per_mask_px=20.0, edge=edge, min_tissue=0.5)
    shape = RegionShape(16, edge, 1.0, Size(native, native))
    rng, found = np.random.default_rng(0), []
    for _ in range(4000):
        anchor = places.corner(*rng.random(3).tolist())
        block = shape.corners_around(anchor, (rng.random(), rng.random()))
        found.append(places.corners_within(block, rng.random((8, 3))))
    share = np.histogram(np.concatenate(found), bins=9, range=(0, 900))[0] / (2 * 8 * 4000)
    assert share == pytest.approx([1 / 9] * 9, rel=0.12)


@settings(max_examples=100, deadline=None)
@given(n_tiles=st.sampled_from([2, 4, 16]), corner=st.integers(0, 10_000), u=SHARES)
def test_a_block_of_unknown_tiles_is_as_many_edges_wide_as_four_or_sixteen_tiles_are(
    n_tiles: int, corner: int, u: float
) -> None:
    shape = RegionShape(n_tiles, 100.5, 1.0, Size(0, 0))
    allowed = shape.corners_around((corner, corner), (u, u))
    assert allowed.x_first <= corner <= allowed.x_last
    reach = (sqrt(n_tiles) - 1) * 100.5
    assert reach - 2 < allowed.x_last - allowed.x_first <= reach
