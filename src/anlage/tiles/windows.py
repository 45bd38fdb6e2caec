"""Which samples of the stream share a region: a fixed permutation inside windows of steps.

Shape suffixes: N samples or regions, L lanes, M samples of a lane in a window, W regions of a
window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil, gcd
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from anlage.tiles.keyed_random import Floats, Purpose, uniforms_of, words_of

Integers = NDArray[np.int64]
Value = TypeVar("Value", bound=np.generic)

MIN_REGIONS = 64  # in a window: so many slides lie between two tiles of one region, on average
MAX_LANES = 64
TABLE_WORDS = 1 << 20  # of permutations held at a time
BELOW_ONE = np.nextafter(1.0, 0.0)


@dataclass(frozen=True, slots=True)
class Windows:
    """How samples are dealt to regions, each decoded once for ``tiles_per_region`` tiles.

    A window is as many whole steps as give at least 64 regions. The slots of a step are cut into
    lanes, and each lane of a window has regions of its own: any number of ranks or micro-batches
    that divides the lanes gets whole regions. Within a lane a permutation, fixed by the seed,
    says which samples share a region, so the tiles of one region are spread over its steps.

    Attributes:
        seed: Seed of the permutations.
        batch_size: Samples of one step, over all ranks.
        tiles_per_region: Most samples that share a region.
    """

    seed: int
    batch_size: int
    tiles_per_region: int

    @property
    def steps(self) -> int:
        """Steps of a window."""
        return max(1, ceil(MIN_REGIONS * self.tiles_per_region / self.batch_size))

    @property
    def n_lanes(self) -> int:
        """Parts of a step that have regions of their own."""
        return gcd(self.batch_size, MAX_LANES)

    @property
    def lane_samples(self) -> int:
        """Samples of one lane in one window."""
        return self.steps * self.batch_size // self.n_lanes

    @property
    def lane_regions(self) -> int:
        """Regions of one lane in one window."""
        return ceil(self.lane_samples / self.tiles_per_region)

    @property
    def n_regions(self) -> int:
        """Regions of one window, at least 64."""
        return self.n_lanes * self.lane_regions

    def first_step(self, region: int) -> int:
        """The first step of a region's window."""
        return region // self.n_regions * self.steps

    def region_of(self, g_N: Integers) -> Integers:
        """Region of each sample, (N,) int64."""
        lane_slots = self.batch_size // self.n_lanes
        step, slot = np.divmod(g_N, self.batch_size)
        window, step_in_window = np.divmod(step, self.steps)
        lane, slot_in_lane = np.divmod(slot, lane_slots)
        sample = step_in_window * lane_slots + slot_in_lane
        place = _looked_up(
            self._places_of_samples, window * self.n_lanes + lane, sample, width=self.lane_samples
        )
        region_in_lane = place * self.lane_regions // self.lane_samples
        region_N: Integers = window * self.n_regions + lane * self.lane_regions + region_in_lane
        return region_N

    def samples_of(self, region: int) -> Integers:
        """The samples of a region, (n,) int64: at least 1, at most ``tiles_per_region``."""
        window, region_in_window = divmod(region, self.n_regions)
        lane, region_in_lane = divmod(region_in_window, self.lane_regions)
        ends = self._ends_in_lane()
        g_N: Integers = self._samples_of_lanes(window, np.array([lane]))[0]
        return g_N[ends[region_in_lane] : ends[region_in_lane + 1]]

    def samples_of_window(self, window: int) -> tuple[Integers, Integers]:
        """All samples of a window, region after region, each as ``samples_of`` has them.

        Returns:
            (N,) int64 samples, and (W + 1,) int64 where each region begins among them.
        """
        lane_L = np.arange(self.n_lanes)
        starts = self._ends_in_lane()[:-1] + lane_L[:, None] * self.lane_samples
        samples = self._samples_of_lanes(window, lane_L).ravel()
        return samples, np.append(starts.ravel(), len(samples))

    def _ends_in_lane(self) -> Integers:
        """Where the regions of a lane begin among its places, and where the last ends."""
        return -(-np.arange(self.lane_regions + 1) * self.lane_samples // self.lane_regions)

    def _samples_of_lanes(self, window: int, lane_L: Integers) -> Integers:
        """Samples of some lanes of a window, (L, M), in the order of their places."""
        lane_slots = self.batch_size // self.n_lanes
        sample_LM = self._samples_in_order(window * self.n_lanes + lane_L)
        step_LM, slot_LM = np.divmod(sample_LM, lane_slots)
        step_LM += window * self.steps
        g_LM: Integers = step_LM * self.batch_size + lane_L[:, None] * lane_slots + slot_LM
        return g_LM

    def quantiles(self, region_N: Integers) -> tuple[Floats, Floats]:
        """Two numbers in [0, 1) for each region: systematic samples, in an order of their own.

        Over the W regions of a window either takes one number out of each interval
        [i / W, (i + 1) / W), all at the same offset. Each is uniform, and independent of the other.
        """
        window, region_in_window = np.divmod(region_N, self.n_regions)
        first_N, second_N = (
            _looked_up(
                partial(self._systematic, which=which),
                *(window, region_in_window),
                width=self.n_regions,
            )
            for which in (0, 1)
        )
        return first_N, second_N

    def _samples_in_order(self, lane_L: Integers) -> Integers:
        """The permutation of each (window, lane): sample at each place, (L, M) int64."""
        words_LM = words_of(self.lane_samples, seed=self.seed, g_N=lane_L, purpose=Purpose.LANE)
        return np.argsort(words_LM, axis=1, kind="stable")

    def _places_of_samples(self, lane_L: Integers) -> Integers:
        """Its inverse: place of each sample, (L, M) int64."""
        return _inverse(self._samples_in_order(lane_L))

    def _systematic(self, window_L: Integers, *, which: int) -> Floats:
        """The numbers of all regions of some windows, (L, W) float64."""
        key: dict[str, Any] = {"seed": self.seed, "g_N": window_L, "purpose": Purpose.WINDOW}
        offset_L = uniforms_of(2, **key)[:, which]
        words_LW = words_of(self.n_regions, **key, item_N=which + 1)
        rank_LW = np.argsort(words_LW, axis=1, kind="stable")
        quantile_LW = (rank_LW + offset_L[:, None]) / self.n_regions
        return np.asarray(np.minimum(quantile_LW, BELOW_ONE))


def batch_indices(
    step: int, *, batch_size: int, rank: int = 0, world_size: int = 1
) -> NDArray[np.int64]:
    """Global indices, (batch_size / world_size,) int64, that one rank takes in one step.

    ``g = step * batch_size + rank * (batch_size / world_size) + slot``: the ranks of a step split
    the same samples whatever their number; micro-batches split those of a rank in the same way.

    Args:
        step: The step.
        batch_size: Samples of the step, over all ranks.
        rank: This rank, 0 to ``world_size - 1``.
        world_size: Number of ranks; must divide ``batch_size``.

    Raises:
        ValueError: If the ranks cannot share the batch evenly.
    """
    if batch_size % world_size:
        msg = (
            f"batch_indices: needs a batch_size that world_size={world_size} divides; got "
            f"{batch_size}. Choose a global batch that is a multiple of the number of ranks."
        )
        raise ValueError(msg)
    share = batch_size // world_size
    first = step * batch_size + rank * share
    return np.arange(first, first + share, dtype=np.int64)


def _looked_up(
    table_of: Callable[[Integers], NDArray[Value]],
    row_N: Integers,
    column_N: Integers,
    *,
    width: int,
) -> NDArray[Value]:
    """``table_of(rows)[row, column]`` of each pair, making few rows of the table at a time."""
    rows, inverse_N = np.unique(row_N, return_inverse=True)
    n_at_once = max(1, TABLE_WORDS // width)
    parts = []
    for first in range(0, max(len(rows), 1), n_at_once):
        table = table_of(rows[first : first + n_at_once])
        inside = np.flatnonzero((inverse_N >= first) & (inverse_N < first + n_at_once))
        parts.append((inside, table[inverse_N[inside] - first, column_N[inside]]))
    values_N = np.empty(len(row_N), dtype=parts[0][1].dtype)
    for inside, values in parts:
        values_N[inside] = values
    return values_N


def _inverse(order_LM: Integers) -> Integers:
    """The inverse of each row's permutation."""
    inverse_LM = np.empty_like(order_LM)
    np.put_along_axis(inverse_LM, order_LM, np.arange(order_LM.shape[1])[None, :], axis=1)
    return inverse_LM
