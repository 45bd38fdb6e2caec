"""Attention MIL: a weighted mean of tiles, with weights learned from the tiles.

Shape suffixes: T tiles of all bags, B bags, D width of the features, W pooled width, H hidden
width of the attention, A attention branches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from anlage.models.bag_pooling.segments import (
    BagPooling,
    PooledBags,
    bag_softmax,
    bag_sums,
    refuse_bags,
)
from anlage.models.bag_pooling.settings import refuse_dropout, refuse_sizes


class AttentionScore(nn.Module):
    """A score of each tile, before the softmax.

        plain:  s = w . tanh(V h),    gated:  s = w . (tanh(V h) * sigmoid(U h))

    Args:
        input_width: Width of h.
        hidden: Rows H of V and U.
        n_branches: Scores A of a tile, each with its own w.
        gated: Whether there is a gate U.
        dropout: Of both factors while training, in [0, 1).

    Source: Ilse et al. 2018, arXiv:1802.04712, equations 8 and 9.
    """

    def __init__(
        self,
        *,
        input_width: int,
        hidden: int,
        n_branches: int = 1,
        gated: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.content = nn.Linear(input_width, hidden)
        self.gate = nn.Linear(input_width, hidden) if gated else None
        self.score = nn.Linear(hidden, n_branches)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_TW: Tensor) -> Tensor:
        """Scores of each tile, (T, W) -> (T, A)."""
        factor_TH = self.dropout(torch.tanh(self.content(hidden_TW)))
        if self.gate is not None:
            factor_TH = factor_TH * self.dropout(torch.sigmoid(self.gate(hidden_TW)))
        score_TA: Tensor = self.score(factor_TH)
        return score_TA


class AttentionPooling(BagPooling):
    """ABMIL: features through one layer, then their attention-weighted mean.

    The defaults are the published UNI's: a layer of 512 after an input dropout of 0.10, an
    attention of 384 hidden rows, and dropout of 0.25 elsewhere.

    Args:
        input_width: Width D of the features.
        width: Width W of the layer before the attention; None for none (Ilse's equation 7 on the
            features themselves).
        hidden: Hidden rows H of the attention.
        gated: Gated attention (equation 9) in place of the plain one (equation 8).
        activation: Whether a ReLU follows the layer; eva's ABMIL goes without.
        input_dropout: Of the features while training, in [0, 1).
        dropout: After the layer and in the attention while training, in [0, 1).

    Raises:
        ValueError: If a size is below 1 or a dropout is not in [0, 1).

    Source: Ilse et al. 2018, arXiv:1802.04712; Chen et al. 2024, UNI, arXiv:2308.15474, methods.
    """

    def __init__(
        self,
        *,
        input_width: int,
        width: int | None = 512,
        hidden: int = 384,
        gated: bool = False,
        activation: bool = True,
        input_dropout: float = 0.10,
        dropout: float = 0.25,
    ) -> None:
        super().__init__()
        refuse_sizes("AttentionPooling", input_width=input_width, width=width or 1, hidden=hidden)
        refuse_dropout("AttentionPooling", input_dropout, dropout)
        self.input_width = input_width
        self.out_width = width or input_width
        self.input_dropout = nn.Dropout(input_dropout)
        self.embed = tile_layer(input_width, width, activation=activation, dropout=dropout)
        self.attention = AttentionScore(
            input_width=self.out_width, hidden=hidden, gated=gated, dropout=dropout
        )

    def forward(
        self, features_TD: Tensor, lengths: Sequence[int], *, cell_T2: Tensor | None = None
    ) -> PooledBags:
        """Weighted mean of each bag.

        Args:
            features_TD: (T, D) features of the tiles of all bags.
            lengths: Tiles of each bag, 1 or more each; they sum to T.
            cell_T2: Not used.

        Returns:
            Embedding (B, W) and attention (T, 1), float32.

        Raises:
            ValueError: If the features or lengths do not fit.
        """
        del cell_T2
        refuse_bags("AttentionPooling", features_TD, lengths, width=self.input_width)
        hidden_TW = self.embed(self.input_dropout(features_TD))
        attention_T1 = bag_softmax(self.attention(hidden_TW), lengths)
        return PooledBags(bag_sums(attention_T1, hidden_TW, lengths)[:, 0], attention_T1)


def tile_layer(
    input_width: int, width: int | None, *, activation: bool, dropout: float
) -> nn.Module:
    """The layer between the features and the attention; nothing where ``width`` is None."""
    if width is None:
        return nn.Identity()
    layers: list[nn.Module] = [nn.Linear(input_width, width)]
    if activation:
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.Dropout(dropout))
