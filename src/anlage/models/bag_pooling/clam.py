"""CLAM: gated attention with instance classifiers on the most and least attended tiles.

Shape suffixes: T tiles of all bags, B bags, D width of the features, W pooled width, A attention
branches, C classes, K tiles a side, L tiles of one bag.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from anlage.models.bag_pooling.attention import AttentionScore, tile_layer
from anlage.models.bag_pooling.segments import (
    BagPooling,
    InstanceLogits,
    PooledBags,
    bag_softmax,
    bag_sums,
    refuse_bags,
    wide,
)
from anlage.models.bag_pooling.settings import refuse_dropout, refuse_sizes


class ClamPooling(BagPooling):
    """Gated attention, with one branch (CLAM-SB) or one a class (CLAM-MB).

    Which tiles are most and least attended gets no gradient; their features and the instance
    classifiers do, by ``instance_loss``.

    Args:
        input_width: Width D of the features.
        n_classes: Classes C, 2 or more.
        multi_branch: One attention branch a class.
        width: Width W of the layer before the attention.
        hidden: Hidden rows of the attention.
        n_instances: Most and least attended tiles K of a bag; half the bag where that is fewer.
        input_dropout: Of the features while training, in [0, 1).
        dropout: After the layer and in the attention while training, in [0, 1).

    Raises:
        ValueError: If a size is below 1, there are fewer than 2 classes, or a dropout is not in
            [0, 1).

    Source: Lu et al. 2021, CLAM, Nature Biomedical Engineering 5, arXiv:2004.09666, methods.
    """

    def __init__(
        self,
        *,
        input_width: int,
        n_classes: int,
        multi_branch: bool,
        width: int = 512,
        hidden: int = 256,
        n_instances: int = 8,
        input_dropout: float = 0.0,
        dropout: float = 0.25,
    ) -> None:
        super().__init__()
        refuse_sizes(
            "ClamPooling",
            input_width=input_width,
            width=width,
            hidden=hidden,
            n_instances=n_instances,
            other_classes=n_classes - 1,
        )
        refuse_dropout("ClamPooling", input_dropout, dropout)
        self.input_width, self.out_width = input_width, width
        self.n_classes, self.n_instances = n_classes, n_instances
        self.n_branches = n_classes if multi_branch else 1
        self.is_branched = multi_branch
        self.input_dropout = nn.Dropout(input_dropout)
        self.embed = tile_layer(input_width, width, activation=True, dropout=dropout)
        self.attention = AttentionScore(
            input_width=width, hidden=hidden, n_branches=self.n_branches, dropout=dropout
        )
        self.instances = nn.Linear(width, 2 * n_classes)

    def forward(
        self, features_TD: Tensor, lengths: Sequence[int], *, cell_T2: Tensor | None = None
    ) -> PooledBags:
        """Weighted means of each bag, and what instance classifiers say of its extreme tiles.

        Args:
            features_TD: (T, D) features of the tiles of all bags.
            lengths: Tiles of each bag, 1 or more each; they sum to T.
            cell_T2: Not used.

        Returns:
            Embedding (B, W), or (B, C, W) of CLAM-MB, and attention (T, 1) or (T, C), float32.

        Raises:
            ValueError: If the features or lengths do not fit.
        """
        del cell_T2
        refuse_bags("ClamPooling", features_TD, lengths, width=self.input_width)
        hidden_TW = self.embed(self.input_dropout(features_TD))
        attention_TA = bag_softmax(self.attention(hidden_TW), lengths)
        embedding_BAW = bag_sums(attention_TA, hidden_TW, lengths)
        return PooledBags(
            embedding_BAW if self.is_branched else embedding_BAW[:, 0],
            attention_TA,
            self._instances(hidden_TW, attention_TA.detach(), lengths),
        )

    def _instances(
        self, hidden_TW: Tensor, attention_TA: Tensor, lengths: Sequence[int]
    ) -> InstanceLogits:
        n_side = self.n_instances
        bags = torch.split(attention_TA, list(lengths))
        starts_B = torch.tensor([0, *lengths[:-1]], device=hidden_TW.device).cumsum(0)
        sides_B2AK = torch.stack([extreme_tiles(bag_LA, n_side) for bag_LA in bags])
        row_B2AK = sides_B2AK + starts_B[:, None, None, None]
        weight_C2W = self.instances.weight.view(self.n_classes, 2, -1)
        bias_C12 = self.instances.bias.view(self.n_classes, 1, 2)
        rows_B2CKW = hidden_TW[row_B2AK].expand(-1, -1, self.n_classes, -1, -1)
        logits_B2CK2 = torch.einsum("bsckw,cow->bscko", rows_B2CKW, weight_C2W) + bias_C12
        n_kept_B = torch.tensor([min(n_side, n // 2) for n in lengths], device=hidden_TW.device)
        number_K = torch.arange(n_side, device=hidden_TW.device)
        return InstanceLogits(
            top_BCK2=wide(logits_B2CK2[:, 0]),
            bottom_BCK2=wide(logits_B2CK2[:, 1]),
            is_tile_BK=number_K < n_kept_B[:, None],
        )


def extreme_tiles(attention_LA: Tensor, n_side: int) -> Tensor:
    """Rows of the most and the least attended tiles of one bag.

    Args:
        attention_LA: (L, A) attention.
        n_side: Tiles K a side.

    Returns:
        (2, A, K) int64: most attended, least attended, each the extreme one first. Where the bag
        has fewer than 2 K tiles the two share some, and a row may repeat.
    """
    n_kept = min(n_side, len(attention_LA))
    sides_2KA = torch.stack(
        [attention_LA.topk(n_kept, dim=0, largest=high).indices for high in (True, False)]
    )
    place_K = torch.arange(n_side, device=attention_LA.device).clamp(max=n_kept - 1)
    return sides_2KA[:, place_K].transpose(1, 2)
