"""The labelled tiles that a run is watched on, refused before its first step if unfit for it."""

# Shape suffixes: N tiles, 3 channels, S pixels of an edge.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anlage.training.watched_rows import refuse_unfit_rows


@dataclass(frozen=True, kw_only=True, eq=False)
class WatchedTiles:
    """Tiles with labels and groups, in memory for the whole run: N * 3 * S * S bytes.

    Attributes:
        path: Where they are from; errors begin with it.
        pixels_N3SS: (N, 3, S, S) uint8 RGB, at the size and mpp of the encoder that is trained.
        label_N: (N,) class of each tile.
        group_N: (N,) group (patient or case) of each tile; a group is never split.
        fold_N: (N,) fold of each tile, each group in one; None to deal whole groups into folds.
        fingerprint: SHA-256 of what they are, for the record of the run.

    Raises:
        LabelledDataError: If there is not one label and one group a tile, there is only one class,
            or a class has one group, which cannot both train and test a probe.
        ValueError: If the pixels are not (N, 3, S, S) uint8.
    """

    path: Path
    pixels_N3SS: NDArray[np.uint8]
    label_N: NDArray[Any]
    group_N: NDArray[Any]
    fold_N: NDArray[Any] | None
    fingerprint: str

    def __post_init__(self) -> None:
        refuse_pixels("WatchedTiles", self.pixels_N3SS.shape, self.pixels_N3SS.dtype)
        refuse_unfit_rows(self, n_rows=len(self.pixels_N3SS))

    @property
    def what(self) -> str:
        """What a row is."""
        return "tile"

    def __len__(self) -> int:
        """How many tiles there are."""
        return len(self.pixels_N3SS)


def shown_tiles(tiles: WatchedTiles, n: int = 4) -> NDArray[np.int64]:
    """Rows of a few tiles to draw in every look: the first of each class, then the second ...

    Args:
        tiles: The tiles.
        n: How many; all if there are fewer.

    Returns:
        Rising int64 rows.
    """
    label_N = np.asarray(tiles.label_N).astype(str)
    turn_N = np.zeros(len(label_N), dtype=np.int64)
    for name in np.unique(label_N):
        turn_N[label_N == name] = np.arange((label_N == name).sum())
    rows: NDArray[np.int64] = np.sort(np.lexsort((label_N, turn_N))[:n]).astype(np.int64)
    return rows


def refuse_pixels(who: str, shape: Sequence[int], dtype: object) -> None:
    """Refuse what is not a batch of square uint8 tiles.

    Raises:
        ValueError: If it is not.
    """
    is_tiles = len(shape) == 4 and shape[1] == 3 and shape[2] == shape[3] and 0 not in shape
    if not is_tiles or str(dtype).removeprefix("torch.") != "uint8":
        msg = (
            f"{who}: needs (N, 3, S, S) uint8 pixels; got shape {tuple(shape)}, {dtype}. "
            "Stack square RGB tiles of the encoder's tile_px, channels first."
        )
        raise ValueError(msg)
