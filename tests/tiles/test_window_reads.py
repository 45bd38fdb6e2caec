"""Which regions a share of steps needs: all of them, once, the most urgent first."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from anlage.tiles.window_reads import RegionNeed, Share, empty_batch, regions_needed
from anlage.tiles.windows import Windows


def sampler(k: int, batch_size: int = 16) -> Any:
    windows = Windows(5, batch_size, k)
    return SimpleNamespace(
        steps_per_window=windows.steps,
        region_of=windows.region_of,
        samples_of=windows.samples_of,
    )


def needs(k: int, share: Share) -> list[RegionNeed]:
    return list(regions_needed(sampler(k), share))


@pytest.mark.parametrize("k", [1, 3, 16])
@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 2), (3, 4)])
def test_each_sample_of_a_share_is_in_one_region_that_is_needed_once(
    k: int, rank: int, world_size: int
) -> None:
    share = Share(3, 41, 16, rank, world_size)
    found = needs(k, share)
    counts = Counter(need.region for need in found)
    assert set(counts.values()) == {1}
    drawn = [g for need in found for g in sampler(k).samples_of(need.region) if share.holds(int(g))]
    assert sorted(drawn) == sorted(g for step in range(3, 41) for g in share.g_of(step))
    for need in found:
        mine = [int(g) for g in sampler(k).samples_of(need.region) if share.holds(int(g))]
        assert need.n_tiles == len(mine)
        assert need.step == min(share.step_of(g) for g in mine)


def test_regions_come_in_the_order_in_which_they_are_needed() -> None:
    steps = [need.step for need in needs(16, Share(10, 200, 16, 0, 1))]
    assert steps == sorted(steps)
    assert len(set(steps)) > 2


def test_ranks_of_lanes_share_no_region() -> None:
    whole = needs(4, Share(0, 32, 16, 0, 1))
    ranks = [needs(4, Share(0, 32, 16, rank, 4)) for rank in range(4)]
    assert sorted(n.region for n in whole) == sorted(n.region for one in ranks for n in one)


def test_slots_number_a_ranks_samples() -> None:
    share = Share(0, 9, 16, 2, 4)
    assert [share.slot_of(int(g)) for g in share.g_of(7)] == [0, 1, 2, 3]
    assert {share.step_of(int(g)) for g in share.g_of(7)} == {7}
    assert not share.holds(7 * 16)
    assert not share.holds(9 * 16 + 8)


def test_pixels_share_the_memory_of_the_slots() -> None:
    for n_views, shape in ((1, (16, 3, 5, 5)), (2, (16, 2, 3, 5, 5))):
        batch = empty_batch(Share(0, 1, 16, 0, 1), 0, n_views=n_views, size_px=5)
        batch.slots_BVSS3[:] = 0
        batch.slots_BVSS3[3, -1, 1, 2] = (7, 8, 9)
        assert batch.pixels.shape == shape
        assert batch.pixels[3, ..., 1, 2].flatten().tolist()[-3:] == [7, 8, 9]
        assert batch.n_missing == 16
