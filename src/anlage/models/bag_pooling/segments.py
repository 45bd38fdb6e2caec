"""Packed bags: tiles of several slides below each other, with no padding.

Shape suffixes: T tiles of all bags, B bags, L tiles of one bag, D width, A attention branches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class PooledBags(NamedTuple):
    """What a pooling makes of a batch of bags.

    Attributes:
        embedding_BW: (B, W) float32, one vector a bag; (B, A, W) where each branch has its own.
        attention_TA: (T, A) float32, 0 or more, summing to 1 within each bag; None where the
            pooling has none.
        instances: What CLAM's instance loss takes, else None.
    """

    embedding_BW: Tensor
    attention_TA: Tensor | None
    instances: InstanceLogits | None = None


class InstanceLogits(NamedTuple):
    """What CLAM's instance classifiers say of the most and least attended tiles.

    Attributes:
        top_BCK2: (B, C, K, 2) logits (not of the class, of the class) of the K tiles that branch c
            attends to most, the most attended first.
        bottom_BCK2: (B, C, K, 2) of the K least attended.
        is_tile_BK: (B, K) bool, False where a bag has fewer than 2 K tiles: it gives only
            half of its tiles to each side.
    """

    top_BCK2: Tensor
    bottom_BCK2: Tensor
    is_tile_BK: Tensor


class BagPooling(nn.Module, ABC):
    """What every pooling is: a module that says its width, and the pass from tiles to bags.

    Attributes:
        out_width: Width W of what it gives.
        is_branched: Whether it gives one vector a branch, (B, A, W).
    """

    out_width: int
    is_branched: bool = False

    @abstractmethod
    def forward(
        self, features_TD: Tensor, lengths: Sequence[int], *, cell_T2: Tensor | None = None
    ) -> PooledBags:
        """Tiles (T, D) of bags of these lengths to one vector a bag."""


def refuse_bags(who: str, features_TD: Tensor, lengths: Sequence[int], *, width: int) -> None:
    """Refuse packed bags that cannot be pooled.

    Args:
        who: Function that asks.
        features_TD: (T, D) features of the tiles of all bags.
        lengths: Tiles of each bag.
        width: D that is needed.

    Raises:
        ValueError: If the features are not (T, width), there is no bag, a bag is empty, or the
            lengths do not sum to T.
    """
    if features_TD.ndim != 2 or features_TD.shape[1] != width:
        msg = (
            f"{who}: needs features of shape (tiles, {width}); got {tuple(features_TD.shape)}. "
            "Take bags of the encoder that the model was made for."
        )
        raise ValueError(msg)
    if not lengths or min(lengths) < 1:
        msg = (
            f"{who}: needs one bag or more, of one tile or more each; got lengths "
            f"{list(lengths)[:8]}. Leave out slides without tissue."
        )
        raise ValueError(msg)
    if sum(lengths) != len(features_TD):
        msg = (
            f"{who}: needs lengths that sum to the {len(features_TD)} tiles; got a sum of "
            f"{sum(lengths)}. Pass the number of tiles of each bag, in the order of the features."
        )
        raise ValueError(msg)


def wide(value: Tensor) -> Tensor:
    """The values in float32, or wider where they are."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def bag_softmax(score_TA: Tensor, lengths: Sequence[int]) -> Tensor:
    """Softmax over the tiles of each bag, in float32 or wider.

    Args:
        score_TA: (T, A) scores of any size, any floating dtype.
        lengths: Tiles of each bag; they sum to T.

    Returns:
        (T, A) float32, summing to 1 over each bag in each branch.
    """
    bags = torch.split(wide(score_TA), list(lengths))
    return torch.cat([bag_LA.softmax(dim=0) for bag_LA in bags])


def bag_sums(weight_TA: Tensor, features_TD: Tensor, lengths: Sequence[int]) -> Tensor:
    """Weighted sum of the tiles of each bag, in float32 or wider whatever autocast says.

    Args:
        weight_TA: (T, A) weights.
        features_TD: (T, D) features.
        lengths: Tiles of each bag; they sum to T.

    Returns:
        (B, A, D) float32.
    """
    sizes = list(lengths)
    with torch.autocast(features_TD.device.type, enabled=False):
        pairs = zip(
            torch.split(wide(weight_TA), sizes),
            torch.split(wide(features_TD), sizes),
            strict=True,
        )
        return torch.stack([weight_LA.T @ bag_LD for weight_LA, bag_LD in pairs])


def bag_means(features_TD: Tensor, lengths: Sequence[int]) -> Tensor:
    """(B, D) float32 mean of the tiles of each bag."""
    bags = torch.split(wide(features_TD), list(lengths))
    return torch.stack([bag_LD.mean(dim=0) for bag_LD in bags])
