"""Sums of rows by group, kept sparse, so that a weighting of the groups is one product."""

# Shape suffixes: N rows (tiles), G groups (patients), K cells (classes, bins, thresholds),
# R weightings of the groups.

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

BLOCK_CELLS = 2**18
FEWEST_WEIGHTINGS = 8


class GroupSums:
    """A (K, G) sparse table: the sum of a value over the rows of each cell and group.

    Holds one number for each pair of cell and group that occurs, at most N of them. Sums are in
    float64: exact for counts under whole weights.
    """

    def __init__(
        self,
        cell_N: NDArray[np.int64],
        code_N: NDArray[np.int64],
        *,
        shape: tuple[int, int],
        value_N: NDArray[np.float64] | None = None,
    ) -> None:
        value = np.ones(len(cell_N)) if value_N is None else value_N
        table = sparse.coo_array((value, (cell_N, code_N)), shape=shape)
        self._table_KG = table.tocsr()

    def under(self, weight_RG: NDArray[np.float64]) -> NDArray[np.float64]:
        """(R, K) float64 sums when a row of group g counts ``weight_RG[r, g]`` times."""
        return self.columns_under(np.ascontiguousarray(weight_RG.T)).T

    def columns_under(self, weight_GR: NDArray[np.float64]) -> NDArray[np.float64]:
        """(K, R) float64 sums, of weights that lie with a column for each weighting."""
        sums: NDArray[np.float64] = self._table_KG @ weight_GR
        return sums


def blocks_of_weights(
    weight_RG: NDArray[np.float64], *, n_cells: int
) -> Iterator[NDArray[np.float64]]:
    """Weightings in contiguous blocks (G, r) with r x K under 262,144 cells (2 MB), but r >= 8."""
    n_block = max(FEWEST_WEIGHTINGS, BLOCK_CELLS // max(1, n_cells))
    for start in range(0, len(weight_RG), n_block):
        yield np.ascontiguousarray(weight_RG[start : start + n_block].T)


def ratio(above: NDArray[Any], below: NDArray[Any]) -> NDArray[np.float64]:
    """``above / below``, NaN where ``below`` is zero, without a warning."""
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient: NDArray[np.float64] = np.where(below > 0, above / below, np.nan)
    return quotient
