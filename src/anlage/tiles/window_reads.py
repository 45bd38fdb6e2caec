"""Which regions a stretch of steps needs, and the batches that their tiles are written into.

Shape suffixes: B tiles of a batch, V views, S tile edge, 3 colour channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anlage.tiles.quarantine import ReadError
from anlage.tiles.sampling import TileRequest
from anlage.tiles.tile_draws import TileDraws
from anlage.tiles.windows import batch_indices


@dataclass(frozen=True, slots=True)
class Share:
    """Which samples one rank reads: its slots of the steps from ``first_step`` to ``last_step``.

    Attributes:
        first_step: First step that is read.
        last_step: Step after the last.
        batch_size: Tiles of a step, over all ranks.
        rank: This process among those that share each step.
        world_size: Processes that share each step.
    """

    first_step: int
    last_step: int
    batch_size: int
    rank: int
    world_size: int

    @property
    def n_slots(self) -> int:
        """Tiles of a step that are this rank's."""
        return self.batch_size // self.world_size

    def step_of(self, g: int) -> int:
        """The step that a sample belongs to."""
        return g // self.batch_size

    def slot_of(self, g: int) -> int:
        """Row of a sample in this rank's batch."""
        return g % self.batch_size - self.rank * self.n_slots

    def holds(self, g: int) -> bool:
        """Whether a sample is one of these."""
        is_in_time = self.first_step <= self.step_of(g) < self.last_step
        return is_in_time and 0 <= self.slot_of(g) < self.n_slots

    def g_of(self, step: int) -> NDArray[np.int64]:
        """This rank's samples of a step, (B,) int64."""
        how = {"batch_size": self.batch_size, "rank": self.rank, "world_size": self.world_size}
        return batch_indices(step, **how)


@dataclass(frozen=True, slots=True)
class RegionNeed:
    """A region that must be read.

    Attributes:
        region: Its number.
        step: First step that needs one of its tiles.
        n_tiles: How many of its tiles are needed.
    """

    region: int
    step: int
    n_tiles: int


def regions_needed(sampler: TileDraws, share: Share) -> Iterator[RegionNeed]:
    """The regions of a share, window by window, in the order in which they are first needed."""
    n_steps = sampler.steps_per_window
    step = share.first_step
    while step < share.last_step:
        end = min((step // n_steps + 1) * n_steps, share.last_step)
        g = np.concatenate([share.g_of(s) for s in range(step, end)])
        region, first, count = np.unique(
            sampler.region_of(g), return_index=True, return_counts=True
        )
        for i in np.argsort(first).tolist():
            yield RegionNeed(int(region[i]), step + int(first[i]) // share.n_slots, int(count[i]))
        step = end


@dataclass(slots=True, eq=False)
class GrowingBatch:
    """A batch whose tiles arrive in any order; complete when ``n_missing`` is 0.

    Attributes:
        step: Its step.
        g: (B,) int64 global indices.
        pixels_BVSS3: uint8, pinned where there is a CUDA device. Channels last, as tiles are
            decoded: the copy costs a quarter of one that moves the channels to the front.
        slots_BVSS3: The same memory as an array.
        requests: Where each tile came from.
        errors: Tiles that could not be read.
        rejected: Names of the filters that rejected a tile, one for each tile rejected.
        failures: By g, what makes the batch impossible.
        n_missing: Tiles that have not arrived.
    """

    step: int
    g: NDArray[np.int64]
    pixels_BVSS3: Tensor
    slots_BVSS3: NDArray[np.uint8]
    requests: list[TileRequest | None]
    errors: list[ReadError] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    failures: dict[int, Exception] = field(default_factory=dict)
    n_missing: int = 0

    @property
    def pixels(self) -> Tensor:
        """The tiles as (B, 3, S, S), or (B, V, 3, S, S) where there are several views."""
        channels_first = self.pixels_BVSS3.permute(0, 1, 4, 2, 3)
        return channels_first[:, 0] if channels_first.shape[1] == 1 else channels_first


def empty_batch(share: Share, step: int, *, n_views: int, size_px: int) -> GrowingBatch:
    """A batch of one step with no tile in it; an ordinary one takes memory as tiles arrive."""
    g = share.g_of(step)
    shape = (len(g), n_views, size_px, size_px, 3)
    pixels_BVSS3 = torch.empty(shape, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
    slots_BVSS3 = pixels_BVSS3.numpy()
    return GrowingBatch(step, g, pixels_BVSS3, slots_BVSS3, [None] * len(g), n_missing=len(g))
