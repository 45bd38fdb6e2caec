"""Dealing against every possible assignment."""

from itertools import product

import numpy as np
import pytest

from anlage.probes.splits.dealing import PRICE_OF_ABSENCE, deal


def slow_cost(part_UQ, share_K, bin_U, *, spreads_first) -> float:
    cost = 0.0
    for column in part_UQ.T:
        for place, share in enumerate(share_K):
            held = sum(value for value, k in zip(column, bin_U, strict=True) if k == place)
            cost += (held - share * column.sum()) ** 2
            cost += PRICE_OF_ABSENCE * (spreads_first and held == 0)
    return cost


def least_cost(part_UQ, share_K, *, spreads_first) -> float:
    n_bins = len(share_K)
    return min(
        slow_cost(part_UQ, share_K, bins, spreads_first=spreads_first)
        for bins in product(range(n_bins), repeat=len(part_UQ))
        if len(set(bins)) == n_bins
    )


@pytest.mark.parametrize("spreads_first", [True, False])
@pytest.mark.parametrize("share_K", [[0.5, 0.5], [1 / 3, 1 / 3, 1 / 3], [0.7, 0.2, 0.1]])
@pytest.mark.parametrize("seed", range(4))
def test_reaches_the_best_of_all_assignments(share_K, seed, spreads_first) -> None:
    generator = np.random.default_rng(seed)
    part_UQ = generator.poisson(2, (7, 3)) * generator.integers(0, 2, (7, 3)).astype(float)
    part_UQ[:, 0] += 1
    part_UQ /= part_UQ.sum()
    shares = np.array(share_K)
    bin_U = deal(
        part_UQ,
        shares,
        np.random.default_rng(seed),
        spreads_first=spreads_first,
        n_starts=20,
    )
    assert set(bin_U.tolist()) == set(range(len(shares)))
    reached = slow_cost(part_UQ, shares, bin_U, spreads_first=spreads_first)
    best = least_cost(part_UQ, shares, spreads_first=spreads_first)
    assert reached == pytest.approx(best, abs=1e-9)


def test_same_generator_same_bins_and_no_bin_is_empty() -> None:
    part_UQ = np.zeros((6, 1))
    part_UQ[0] = 1  # all the others weigh nothing, yet each bin gets a unit
    bins = [
        deal(
            part_UQ, np.full(6, 1 / 6), np.random.default_rng(seed), spreads_first=True, n_starts=1
        )
        for seed in (3, 3, 4)
    ]
    assert bins[0].tolist() == bins[1].tolist() != bins[2].tolist()
    assert sorted(bins[0].tolist()) == list(range(6))


@pytest.mark.parametrize("seed", range(4))
def test_a_bin_keeps_its_last_unit_though_the_shares_would_have_it_empty(seed) -> None:
    shares, generator = np.array([0.98, 0.02]), np.random.default_rng(seed)
    bin_U = deal(np.full((2, 1), 0.5), shares, generator, spreads_first=False, n_starts=3)
    assert sorted(bin_U.tolist()) == [0, 1]


def test_the_changes_a_table_promises_are_those_it_makes() -> None:
    from anlage.probes.splits.dealing import _Table

    generator = np.random.default_rng(5)
    part_UQ = generator.integers(0, 3, (9, 4)).astype(float)
    share_K = np.array([0.5, 0.3, 0.2])
    table = _Table.empty(part_UQ, share_K, PRICE_OF_ABSENCE)
    for unit in range(9):
        table.put(unit, unit % 3)
    before = table.cost()
    for unit, place in product(range(9), range(3)):
        home, change = int(table.bin_U[unit]), table.change_by_moving(unit)[place]
        table.move(unit, place)
        assert table.cost() - before == pytest.approx(change, abs=1e-8)
        table.move(unit, home)
    for unit, other in product(range(9), range(9)):
        home, there = int(table.bin_U[unit]), int(table.bin_U[other])
        change = table.change_by_swapping(unit)[other]
        table.move(unit, there)
        table.move(other, home)
        assert table.cost() - before == pytest.approx(change, abs=1e-8)
        table.move(unit, home)
        table.move(other, there)
