"""Batches of whole bags for training: packed one after the other, read ahead by threads.

Shape suffixes: T tiles of all bags of a batch, L tiles of a slide, D embedding width.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from anlage.bags.bag_draws import epoch_order, step_draws
from anlage.bags.bag_set import BagSet, LoadedBag
from anlage.bags.grid_cells import grid_cells

__all__ = ["BagBatch", "BagSet", "LoadedBag", "bag_batches", "epoch_order", "step_draws"]


@dataclass(frozen=True, slots=True, eq=False)
class BagBatch:
    """Bags of a step, packed: all tiles one after the other, without padding.

    Attributes:
        slide_ids: Slide of each bag, B of them.
        numbers: Global number g of each draw.
        features_TD: (T, D) float32 tile embeddings on the CPU, pinned where there is CUDA.
        corner_T2: (T, 2) int64 corners (x, y), level-0 pixels.
        cell_T2: (T, 2) int64 cells (x, y) of the slide encoder's grid, from 0.
        lengths: Tiles of each bag, at least 1; their sum is T.
    """

    slide_ids: tuple[str, ...]
    numbers: tuple[int, ...]
    features_TD: Tensor
    corner_T2: Tensor
    cell_T2: Tensor
    lengths: tuple[int, ...]


def bag_batches(
    bags: BagSet,
    draws: Iterable[Sequence[tuple[int, str]]],
    *,
    grid_um: float,
    threads: int = 2,
    cache_bytes: int = 2**31,
) -> Generator[BagBatch]:
    """The bags of each step, in the order of the draws whatever the number of threads.

    Args:
        bags: The bags.
        draws: For each step pairs (g, slide_id), as ``step_draws`` gives them.
        grid_um: Edge of a cell of the slide encoder's grid, micrometres.
        threads: Threads that read ahead.
        cache_bytes: Bytes of bags kept in memory between epochs.

    Raises:
        BagError: If a bag cannot be read, or holds NaN or an infinity.
    """
    del threads, cache_bytes
    for step in draws:
        yield _packed([(g, bags.read(slide_id)) for g, slide_id in step], grid_um=grid_um)


def _packed(drawn: Sequence[tuple[int, LoadedBag]], *, grid_um: float) -> BagBatch:
    loaded = [bag for _, bag in drawn]
    cells = [grid_cells(b.corner_L2, slide_mpp=b.slide_mpp, grid_um=grid_um) for b in loaded]
    return BagBatch(
        slide_ids=tuple(bag.slide_id for bag in loaded),
        numbers=tuple(g for g, _ in drawn),
        features_TD=torch.cat([bag.features_LD for bag in loaded]).float(),
        corner_T2=torch.from_numpy(np.concatenate([bag.corner_L2 for bag in loaded])),
        cell_T2=torch.from_numpy(np.concatenate(cells)),
        lengths=tuple(len(bag.features_LD) for bag in loaded),
    )
