"""What a step takes of a bag: windows, places, mirrors and masks, all keyed by the draw."""

from __future__ import annotations

import numpy as np
import pytest

from anlage.training.slide_pretraining.config import CellViews
from anlage.training.slide_pretraining.views import BagView, draw_view, fixed_view, hidden_of

GRID = np.array([(40 + x, 70 + y) for y in range(8) for x in range(16)])
ALL = CellViews(crop=0.875, n_grid=100, hflip_probability=0.5, vflip_probability=0.5)
STILL = CellViews(n_grid=16)


def view(g: int, views: CellViews = ALL, *, cells=GRID, ratio: float = 0.75, **more) -> BagView:
    return draw_view(cells, seed=3, g=g, views=views, mask_ratio=ratio, **more)


def test_a_view_depends_on_seed_and_number_alone() -> None:
    one, again, next_one = view(5), view(5), view(6)
    for name in ("row_K", "cell_K2", "is_visible_K"):
        assert np.array_equal(getattr(one, name), getattr(again, name))
    assert not np.array_equal(one.cell_K2, next_one.cell_K2)


def test_the_window_is_seven_eighths_of_the_extent_and_goes_everywhere() -> None:
    firsts = set()
    for g in range(200):
        kept = GRID[view(g).row_K]
        low, high = kept.min(axis=0), kept.max(axis=0)
        assert (high - low + 1).tolist() == [14, 7]
        assert len(kept) == 14 * 7
        firsts.add(tuple((low - GRID.min(axis=0)).tolist()))
    assert firsts == {(x, y) for x in range(3) for y in range(2)}


def test_neighbours_stay_neighbours_up_to_mirrors() -> None:
    mirrors = set()
    for g in range(40):
        seen = view(g)
        before, after = GRID[seen.row_K], seen.cell_K2
        slopes = []
        for axis in (0, 1):
            slope = np.unique(
                (after[:, axis] - after[0, axis])[before[:, axis] != before[0, axis]]
                / (before[:, axis] - before[0, axis])[before[:, axis] != before[0, axis]]
            )
            assert len(slope) == 1
            slopes.append(int(slope[0]))
        mirrors.add(tuple(slopes))
    assert mirrors == {(1, 1), (1, -1), (-1, 1), (-1, -1)}


def test_tiles_come_row_by_row_as_a_grid_gives_them() -> None:
    for g in range(10):
        cells = view(g).cell_K2
        assert np.array_equal(np.lexsort((cells[:, 0], cells[:, 1])), np.arange(len(cells)))


def test_bags_are_put_anywhere_inside_the_grid() -> None:
    corners = np.array([view(g).cell_K2.min(axis=0) for g in range(400)])
    largest = np.array([view(g).cell_K2.max(axis=0) for g in range(400)])
    assert corners.min() >= 0
    assert largest.max() <= 99
    assert corners.min() < 3
    assert largest.max() > 96
    assert np.abs(corners.mean(axis=0) - [(100 - 14) / 2, (100 - 7) / 2]).max() < 5


def test_a_bag_larger_than_the_grid_begins_at_its_corner() -> None:
    seen = view(0, CellViews(n_grid=4))
    assert np.array_equal(seen.cell_K2, GRID - [40, 70])


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.75, 0.95])
def test_the_share_is_hidden_uniformly(ratio: float) -> None:
    counts = np.zeros(len(GRID))
    for g in range(300):
        seen = view(g, STILL, ratio=ratio)
        assert (~seen.is_visible_K).sum() == round(ratio * len(GRID))
        counts[seen.row_K[~seen.is_visible_K]] += 1
    expected = 300 * ratio
    assert np.abs(counts - expected).max() < 5 * np.sqrt(300 * ratio * (1 - ratio))


@pytest.mark.parametrize(("n", "hidden"), [(2, 1), (3, 2), (4, 3), (5, 4)])
def test_one_tile_is_always_seen_and_one_hidden(n: int, hidden: int) -> None:
    assert hidden_of(np.arange(n) / n, 0.99).sum() == n - 1
    assert hidden_of(np.arange(n) / n, 0.01).sum() == 1
    assert hidden_of(np.arange(n) / n, 0.75).sum() == hidden


def test_of_a_large_bag_a_random_share_is_taken() -> None:
    kept = [view(g, STILL, max_tiles=20) for g in range(50)]
    assert {len(seen.row_K) for seen in kept} == {20}
    assert len(set(np.concatenate([seen.row_K for seen in kept]).tolist())) == len(GRID)
    assert {int(seen.is_visible_K.sum()) for seen in kept} == {5}
    assert len(view(0, STILL, max_tiles=10_000).row_K) == len(GRID)


def test_a_window_with_too_few_tiles_is_not_used() -> None:
    apart = np.array([[0, 0], [900, 900]])
    for g in range(20):
        assert len(view(g, CellViews(crop=0.5), cells=apart).row_K) == 2


def test_a_bag_of_one_tile_is_refused() -> None:
    with pytest.raises(ValueError, match="2 tiles or more; got 1"):
        view(0, cells=GRID[:1])


def test_a_fixed_view_leaves_the_bag_where_it_lies() -> None:
    seen = fixed_view(GRID, seed=3, g=1, mask_ratio=0.75)
    assert np.array_equal(seen.cell_K2, GRID)
    assert seen.is_visible_K.sum() == len(GRID) // 4
    assert len(fixed_view(GRID, seed=3, g=1, mask_ratio=0.75, max_tiles=9).row_K) == 9
