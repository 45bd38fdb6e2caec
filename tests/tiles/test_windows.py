from __future__ import annotations

from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anlage.tiles import windows as windows_module
from anlage.tiles.windows import MIN_REGIONS, Windows, batch_indices

BATCHES = st.one_of(st.integers(1, 300), st.sampled_from([256, 384, 768, 1024]))


def window_samples(windows: Windows, window: int) -> np.ndarray:
    n = windows.steps * windows.batch_size
    return np.arange(window * n, (window + 1) * n)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    batch_size=BATCHES,
    tiles_per_region=st.integers(1, 20),
    window=st.integers(0, 10**6),
)
def test_every_sample_of_a_window_has_one_region_and_one_place_in_it(
    seed: int, batch_size: int, tiles_per_region: int, window: int
) -> None:
    windows = Windows(seed, batch_size, tiles_per_region)
    g_N = window_samples(windows, window)
    region_N = windows.region_of(g_N)
    regions = np.arange(window * windows.n_regions, (window + 1) * windows.n_regions)
    assert len(regions) >= MIN_REGIONS
    samples = [windows.samples_of(region) for region in regions.tolist()]
    assert sorted(np.concatenate(samples).tolist()) == g_N.tolist()
    at_once, starts = windows.samples_of_window(window)
    np.testing.assert_array_equal(at_once, np.concatenate(samples))
    assert np.diff(starts).tolist() == [len(mine) for mine in samples]
    for region, mine in zip(regions.tolist(), samples, strict=True):
        assert 1 <= len(mine) <= tiles_per_region
        assert set(region_N[mine - g_N[0]].tolist()) == {region}
        assert windows.first_step(region) == window * windows.steps
        lanes = set((mine % batch_size // (batch_size // windows.n_lanes)).tolist())
        assert len(lanes) == 1
    fullest = ceil(windows.lane_samples / windows.lane_regions)
    assert {len(mine) for mine in samples} <= {fullest - 1, fullest}


@settings(max_examples=30, deadline=None)
@given(
    batch_size=st.integers(1, 40).map(lambda n: 8 * n),
    world_size=st.sampled_from([1, 2, 4, 8]),
    micro_batches=st.sampled_from([1, 2, 4]),
    tiles_per_region=st.sampled_from([1, 4, 16]),
    first=st.integers(0, 100),
)
def test_ranks_and_micro_batches_share_the_same_stream_by_whole_regions(
    batch_size: int, world_size: int, micro_batches: int, tiles_per_region: int, first: int
) -> None:
    windows = Windows(3, batch_size, tiles_per_region)
    n_parts = world_size * micro_batches
    if batch_size % n_parts:
        return
    whole_stream, parts = [], []
    for part in range(n_parts):
        steps = range(first * windows.steps, (first + 1) * windows.steps)
        taken = [
            batch_indices(s, batch_size=batch_size, rank=part, world_size=n_parts) for s in steps
        ]
        parts.append(np.concatenate(taken))
    for step in range(first * windows.steps, (first + 1) * windows.steps):
        whole_stream.append(batch_indices(step, batch_size=batch_size))
        of_rank = [
            batch_indices(step, batch_size=batch_size, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        np.testing.assert_array_equal(np.concatenate(of_rank), whole_stream[-1])
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.concatenate(whole_stream))
    if windows.n_lanes % n_parts == 0:
        regions = [set(windows.region_of(part).tolist()) for part in parts]
        assert len(set().union(*regions)) == sum(map(len, regions)) == windows.n_regions


def test_common_batches_have_lanes_for_eight_ranks() -> None:
    for batch_size in (64, 96, 384, 768, 1024, 3072):
        windows = Windows(0, batch_size, 16)
        assert windows.n_lanes % 8 == 0
        assert windows.steps == max(1, ceil(1024 / batch_size))


def test_tiles_of_a_region_are_spread_over_the_steps_of_their_window() -> None:
    windows = Windows(5, 64, 16)
    step = [windows.samples_of(region) // 64 for region in range(64)]
    assert windows.steps == 16
    assert all(sorted(steps.tolist()) == list(range(16)) for steps in step)
    assert len({tuple(steps.tolist()) for steps in step}) == 64


def test_permutations_are_uniform() -> None:
    """Region 0 of a window takes every sample of it equally often."""
    windows = Windows(1, 7, 3)
    first = [windows.samples_of(n * windows.n_regions) % 196 for n in range(4000)]
    counts = np.bincount(np.concatenate(first), minlength=196)
    expected = counts.sum() / 196
    assert ((counts - expected) ** 2 / expected).sum() < 261  # chi-square, 195 degrees, p = 0.001


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    batch_size=BATCHES,
    tiles_per_region=st.integers(1, 20),
    window=st.integers(0, 10**6),
)
def test_quantiles_of_a_window_take_one_number_from_each_interval(
    seed: int, batch_size: int, tiles_per_region: int, window: int
) -> None:
    windows = Windows(seed, batch_size, tiles_per_region)
    n = windows.n_regions
    for quantile_W in windows.quantiles(np.arange(window * n, (window + 1) * n)):
        assert quantile_W.min() >= 0
        assert quantile_W.max() < 1
        place = np.sort(quantile_W * n)
        np.testing.assert_array_equal(np.floor(place + 1e-9), np.arange(n))
        assert np.ptp(place - np.arange(n)) < 1e-9


def test_quantiles_are_uniform_and_independent() -> None:
    windows = Windows(2, 64, 1)
    region_N = np.arange(3, 64 * 4000, 64)  # one region of each window
    slide_N, mpp_N = windows.quantiles(region_N)
    counts = np.histogram2d(slide_N, mpp_N, bins=8, range=[(0, 1), (0, 1)])[0]
    expected = len(region_N) / 64
    assert ((counts - expected) ** 2 / expected).sum() < 104  # chi-square, 63 degrees, p = 0.001


def test_few_rows_of_a_table_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = Windows(7, 96, 4)
    g_N = np.random.default_rng(0).integers(0, 10**9, 500)
    region_N = windows.region_of(g_N)
    quantiles = windows.quantiles(region_N)
    monkeypatch.setattr(windows_module, "TABLE_WORDS", 200)
    np.testing.assert_array_equal(windows.region_of(g_N), region_N)
    np.testing.assert_array_equal(windows.quantiles(region_N), quantiles)
    one_by_one = [windows.region_of(np.array([g]))[0] for g in g_N[:50]]
    np.testing.assert_array_equal(one_by_one, region_N[:50])


def test_no_samples_have_no_regions() -> None:
    assert Windows(0, 8, 2).region_of(np.empty(0, np.int64)).shape == (0,)


def test_a_batch_that_ranks_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_indices: needs .*world_size=3.*; got 8\. Choose"):
        batch_indices(0, batch_size=8, world_size=3)


def test_regions_are_pinned() -> None:
    """A silent change of the stream would make resumed runs wrong and others incomparable."""
    windows = Windows(42, 96, 4)
    assert windows.region_of(np.array([0, 95, 96, 10**12])).tolist() == [1, 93, 2, 333333333376]
    assert windows.samples_of(1000).tolist() == [3017, 3113, 3112]
    quantiles = np.ravel(windows.quantiles(np.array([1000])))
    assert np.round(quantiles, 12).tolist() == [0.078723271439, 0.820443273173]
