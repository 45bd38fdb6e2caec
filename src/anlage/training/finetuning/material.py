"""What all folds of a fine-tuning run share: bags, targets, slide encoder, device.

Shape suffixes: N slides, B bags, K numbers of a target, C outputs.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anlage.bags.loader import BagBatch, BagCache, BagSet, TileChoice, bag_batches
from anlage.encoders.slide_encoder import (
    OpenSlideEncoder,
    TileEncoderFacts,
    tile_encoder_of,
)
from anlage.training.finetuning.targets import Targets

Draw = tuple[int, str]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Material:
    """What all folds of a run share.

    Attributes:
        bags: The bags.
        targets: The slides of the task.
        grid_um: Edge of a cell of the slide encoder's grid, micrometres.
        encoder: The pretrained slide encoder; None where weights are random or there is none.
        cache: Bags in memory, for all folds.
        device: Where to train.
        threads: Threads that read bags.
        provenance: What the models' folders tell of the run.
    """

    bags: BagSet
    targets: Targets
    grid_um: float = 128.0
    encoder: OpenSlideEncoder | None = None
    cache: BagCache | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    threads: int = 2
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def batches(
        self, draws: Iterable[Sequence[Draw]], *, choice: TileChoice | None = None
    ) -> Generator[BagBatch]:
        """The bags of these draws, on the device.

        Args:
            draws: Pairs (g, slide_id) of each batch.
            choice: Which tiles of each bag to take; None for all as they lie.

        Raises:
            BagError: If a bag is damaged.
        """
        read = bag_batches(
            self.bags,
            draws,
            grid_um=self.grid_um,
            threads=self.threads,
            cache=self.cache,
            choice=choice,
            is_pinned=self.device.type == "cuda",
        )
        try:
            yield from map(self._moved, read)
        finally:
            read.close()

    def whole_bags(self, rows: NDArray[np.int64], *, size: int) -> Generator[BagBatch]:
        """The bags of these slides in their order, ``size`` at a time, whole, on the device."""
        ids = [self.targets.slide_ids[row] for row in rows]
        return self.batches(chunks(list(enumerate(ids)), size))

    def target(self, batch: BagBatch) -> Tensor:
        """(B, K) float64 targets of the bags of a batch, on the device."""
        place = {slide_id: row for row, slide_id in enumerate(self.targets.slide_ids)}
        return self.target_of([place[slide_id] for slide_id in batch.slide_ids])

    def target_of(self, rows: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """(N, K) float64 targets of slides, on the device."""
        return torch.from_numpy(self.targets.target_NK[list(rows)]).to(self.device)

    @property
    def tile_encoder(self) -> TileEncoderFacts:
        """Whose bags they are."""
        return tile_encoder_of(self.bags)

    def _moved(self, batch: BagBatch) -> BagBatch:
        return replace(
            batch,
            features_TD=batch.features_TD.to(self.device, non_blocking=True),
            cell_T2=batch.cell_T2.to(self.device, non_blocking=True),
        )


def chunks(draws: Sequence[Draw], size: int) -> Iterable[Sequence[Draw]]:
    """The draws in their order, ``size`` at a time."""
    return (draws[first : first + size] for first in range(0, len(draws), size))
