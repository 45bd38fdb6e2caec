"""Whole units (patients, sites) dealt into bins so that each column is shared out as asked."""

# Shape suffixes: U units, Q columns to balance (classes), K bins (folds or sides).

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST_PASSES = 100
MOST_UNITS_SWAPPED = 400
DECIMALS = 10  # gains are compared after rounding, so that the last bits of a sum decide nothing
PRICE_OF_ABSENCE = 1e3

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def deal(
    part_UQ: Floats,
    share_K: Floats,
    rng: np.random.Generator,
    *,
    spreads_first: bool,
    n_starts: int,
) -> Ints:
    """Bin of each unit, such that each column falls to the bins by their shares.

    Minimises the sum over columns and bins of (what the bin holds - share of the column's sum)^2.
    Several greedy starts, largest units first, each improved by moves of one unit and swaps of two
    until none helps; the best is kept. No time limit: the same generator gives the same bins. No
    bin stays empty. Columns are to be scaled by the caller to about 1 in sum.

    Args:
        part_UQ: (U, Q) >= 0, what each unit adds to each column.
        share_K: (K,) > 0, sums to 1; K <= U.
        rng: Source of all randomness.
        spreads_first: Whether bins that lack a column altogether are avoided before all else.
        n_starts: Greedy starts, of which the best is kept.

    Returns:
        (U,) int64 bins.
    """
    price = PRICE_OF_ABSENCE if spreads_first else 0.0
    best: tuple[float, Ints] | None = None
    for _ in range(n_starts):
        table = _Table.empty(part_UQ, share_K, price)
        _greedy(table, rng)
        _improve(table, rng)
        cost = table.cost()
        if best is None or cost < best[0]:
            best = cost, table.bin_U
    assert best is not None
    return best[1]


@dataclass(slots=True)
class _Table:
    """What the bins hold so far, kept up to date as units come and go."""

    part_UQ: Floats
    has_UQ: NDArray[np.bool_]
    asked_KQ: Floats
    over_KQ: Floats  # held minus asked for
    n_having_KQ: Ints
    n_units_K: Ints
    bin_U: Ints
    price: float

    @classmethod
    def empty(cls, part_UQ: Floats, share_K: Floats, price: float) -> _Table:
        asked_KQ = share_K[:, None] * part_UQ.sum(axis=0)
        return cls(
            part_UQ=part_UQ,
            has_UQ=part_UQ > 0,
            asked_KQ=asked_KQ,
            over_KQ=-asked_KQ,
            n_having_KQ=np.zeros(asked_KQ.shape, dtype=np.int64),
            n_units_K=np.zeros(len(share_K), dtype=np.int64),
            bin_U=np.full(len(part_UQ), -1),
            price=price,
        )

    def put(self, unit: int, place: int) -> None:
        self._change(unit, place, 1)
        self.bin_U[unit] = place

    def move(self, unit: int, place: int) -> None:
        self._change(unit, int(self.bin_U[unit]), -1)
        self.put(unit, place)

    def _change(self, unit: int, place: int, sign: int) -> None:
        self.over_KQ[place] += sign * self.part_UQ[unit]
        self.n_having_KQ[place] += sign * self.has_UQ[unit]
        self.n_units_K[place] += sign

    def cost(self) -> float:
        held_KQ = np.zeros_like(self.asked_KQ)
        np.add.at(held_KQ, self.bin_U, self.part_UQ)  # anew: sums kept up to date gather rounding
        square = float(((held_KQ - self.asked_KQ) ** 2).sum())
        return round(square + self.price * float((self.n_having_KQ == 0).sum()), DECIMALS)

    def change_by_putting(self, unit: int) -> Floats:
        """(K,) change of the cost if a unit in no bin is put into each."""
        part_Q = self.part_UQ[unit]
        square_K = (2 * self.over_KQ * part_Q + part_Q**2).sum(axis=1)
        new_K = (self.has_UQ[unit] & (self.n_having_KQ == 0)).sum(axis=1)
        rounded: Floats = np.round(square_K - self.price * new_K, DECIMALS)
        return rounded

    def change_by_moving(self, unit: int) -> Floats:
        """(K,) change of the cost if a unit moves to each bin; 0 where it may not."""
        home = self.bin_U[unit]
        if self.n_units_K[home] == 1:
            return np.zeros(len(self.n_units_K))
        part_Q, has_Q = self.part_UQ[unit], self.has_UQ[unit]
        square_K = 2 * ((self.over_KQ - self.over_KQ[home] + part_Q) * part_Q).sum(axis=1)
        new_K = (has_Q & (self.n_having_KQ == 0)).sum(axis=1)
        lost = (has_Q & (self.n_having_KQ[home] == 1)).sum()
        change_K: Floats = np.round(square_K + self.price * (lost - new_K), DECIMALS)
        change_K[home] = 0
        return change_K

    def change_by_swapping(self, unit: int) -> Floats:
        """(U,) change of the cost if a unit changes places with each other; 0 in its own bin."""
        home = self.bin_U[unit]
        more_UQ = self.part_UQ[unit] - self.part_UQ
        over_UQ = self.over_KQ[self.bin_U] - self.over_KQ[home]
        change_U = 2 * ((over_UQ + more_UQ) * more_UQ).sum(axis=1)
        if self.price:
            come_UQ = self.has_UQ.astype(np.int64) - self.has_UQ[unit]
            here_Q, there_UQ = self.n_having_KQ[home], self.n_having_KQ[self.bin_U]
            absent_U = ((here_Q + come_UQ) == 0).sum(axis=1) + ((there_UQ - come_UQ) == 0).sum(
                axis=1
            )
            before_U = (here_Q == 0).sum() + (there_UQ == 0).sum(axis=1)
            change_U = change_U + self.price * (absent_U - before_U)
        change_U = np.round(change_U, DECIMALS)
        change_U[self.bin_U == home] = 0
        rounded: Floats = change_U
        return rounded


def _greedy(table: _Table, rng: np.random.Generator) -> None:
    """Put units into bins, largest first, each where it costs least; ties fall by chance."""
    n_bins = len(table.n_units_K)
    drawn = rng.permutation(len(table.part_UQ))
    largest_first = drawn[np.argsort(-table.part_UQ[drawn].max(axis=1), kind="stable")]
    for n_done, unit in enumerate(largest_first.tolist()):
        order = rng.permutation(n_bins)
        change_K = table.change_by_putting(unit)
        is_empty_K = table.n_units_K == 0
        if is_empty_K.sum() >= len(largest_first) - n_done:
            change_K = np.where(is_empty_K, change_K, np.inf)
        table.put(unit, int(order[change_K[order].argmin()]))


def _improve(table: _Table, rng: np.random.Generator) -> None:
    """Move single units and swap pairs, the best of each unit, until a pass changes nothing."""
    swaps = len(table.part_UQ) <= MOST_UNITS_SWAPPED
    for _ in range(MOST_PASSES):
        n_changes = 0
        for unit in rng.permutation(len(table.part_UQ)).tolist():
            n_changes += _move(table, unit) or (swaps and _swap(table, unit))
        if not n_changes:
            return


def _move(table: _Table, unit: int) -> bool:
    change_K = table.change_by_moving(unit)
    best = int(change_K.argmin())
    if change_K[best] >= 0:
        return False
    table.move(unit, best)
    return True


def _swap(table: _Table, unit: int) -> bool:
    change_U = table.change_by_swapping(unit)
    other = int(change_U.argmin())
    if change_U[other] >= 0:
        return False
    home, there = int(table.bin_U[unit]), int(table.bin_U[other])
    table.move(unit, there)
    table.move(other, home)
    return True
