"""The tiles of a bag with the largest scores for each class, without a copy of the bag."""

# Shape suffixes: L tiles in a bag, D embedding width, C classes, K tiles kept.

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anlage.probes.checks import Rows, embedding_tensor

BLOCK_TILES = 8192


def largest_scores(
    who: str,
    bags: Iterable[Rows],
    score: Callable[[Tensor], Tensor],
    *,
    k: int,
    like_CD: Tensor,
) -> Iterator[Tensor]:
    """For each bag the k largest scores of its tiles, class by class.

    Bags are taken one at a time and read 8,192 tiles at a time, so that a generator, a memory map
    or a half-precision array costs no more than a block of float32.

    Args:
        who: Function that asks, for messages.
        bags: (L, D) embeddings of each bag; L differs from bag to bag.
        score: (n, D) tiles on the device of ``like_CD`` to (n, C) scores.
        k: Scores kept of each class; all of them where a bag has fewer tiles.
        like_CD: Tensor whose width, device and type the tiles must share.

    Yields:
        (K, C) scores, the largest first, K = min(k, L).

    Raises:
        ValueError: If there is no bag, or one is empty, not finite or of another width.
    """
    number = -1
    for number, bag in enumerate(bags):
        rows: Any = bag if hasattr(bag, "shape") else np.asarray(bag)
        best_KC = like_CD.new_empty(0, len(like_CD))
        for start in range(0, max(1, len(rows)), BLOCK_TILES):
            name = f"bag {number} from tile {start}"
            tile_LD = embedding_tensor(
                who,
                name,
                rows[start : start + BLOCK_TILES],
                device=like_CD.device,
                dtype=like_CD.dtype,
            )
            _refuse_width(who, name, tile_LD, like_CD)
            score_LC = torch.cat([best_KC, score(tile_LD)])
            best_KC = score_LC.topk(min(k, len(score_LC)), dim=0).values
        yield best_KC
    if number < 0:
        msg = f"{who}: bags needs one bag or more; got none. Check the list of slides."
        raise ValueError(msg)


def _refuse_width(who: str, name: str, tile_LD: Tensor, like_CD: Tensor) -> None:
    if tile_LD.shape[1] != like_CD.shape[1]:
        msg = (
            f"{who}: {name} needs embeddings of width {like_CD.shape[1]}, as the class vectors; "
            f"got {tile_LD.shape[1]}. Embed both with the same encoder and pooling."
        )
        raise ValueError(msg)
