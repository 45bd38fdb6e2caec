"""From the tiles of a slide to its label: slide encoder, pooling and head in one network.

Shape suffixes: T tiles of all bags, B bags, D width of the tile features, W width before the head,
A attention branches, C outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from anlage.models.bag_pooling.kinds import build_pooling
from anlage.models.bag_pooling.segments import InstanceLogits, PooledBags, bag_means, bag_sums

Route = Literal["pool", "cls", "mean"]


class SlideOutput(NamedTuple):
    """What the model says of a batch of bags.

    Attributes:
        logits_BC: (B, C) float32.
        attention_TA: (T, A) float32 attention of the pooling, summing to 1 within each bag; None
            where there is none.
        instances: What CLAM's instance loss takes, else None.
    """

    logits_BC: Tensor
    attention_TA: Tensor | None
    instances: InstanceLogits | None


class SlideModel(nn.Module):
    """Tile features to logits, for packed bags of any lengths in one pass.

    ``pool`` pools the tiles, contextual ones where there is a slide encoder (LongNet + ABMIL, as
    the Prov-GigaPath paper); ``cls`` and ``mean`` feed states of the slide encoder's slide token,
    or means over its tiles, to the head (as its open code).

    Args:
        input_width: Width D of the tile features.
        n_outputs: Outputs C of the head.
        slide_encoder: Keyword arguments of ``SlideEncoder`` but ``input_width``; None for none.
        route: What is fed to the head.
        layers: States of the slide encoder to concatenate in ``cls`` and ``mean``, 0 (the
            embedded input) to depth; None for its output.
        pooling: ``kind`` and its settings, for route ``pool``.
        shortcut: Concatenate the tile features themselves, pooled with the same attention (or
            their mean) and normalised, to what the head gets.
        dropout: Before the head while training, in [0, 1).

    Raises:
        ValueError: If the parts do not fit each other.

    Source: Xu et al. 2024, Prov-GigaPath, Nature, methods (fine-tuning); the form of the shortcut
        is ours.
    """

    def __init__(
        self,
        *,
        input_width: int,
        n_outputs: int,
        slide_encoder: Mapping[str, Any] | None = None,
        route: Route = "pool",
        layers: Sequence[int] | None = None,
        pooling: Mapping[str, Any] | None = None,
        shortcut: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.input_width, self.n_outputs, self.route = input_width, n_outputs, route
        self.layers = None if layers is None else tuple(layers)
        tile_width = input_width
        if slide_encoder is not None:
            from anlage.models.slide_encoder import SlideEncoder

            self.slide_encoder = SlideEncoder(input_width=input_width, **slide_encoder)
            tile_width = slide_encoder["width"]
        if route == "pool":
            self.pooling = build_pooling(
                **(pooling or {"kind": "gated_abmil"}), input_width=tile_width
            )
            width = int(self.pooling.out_width)
        else:
            width = tile_width * (1 if layers is None else len(layers))
        if shortcut:
            self.shortcut_norm = nn.LayerNorm(input_width)
            width += input_width
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, n_outputs)

    def forward(
        self,
        features_TD: Tensor,
        cell_T2: Tensor | None,
        lengths: Sequence[int],
        *,
        recompute: bool = False,
    ) -> SlideOutput:
        """Logits of each bag.

        Args:
            features_TD: (T, D) features of the tiles of all bags.
            cell_T2: (T, 2) int64 cells of the tiles on the slide encoder's grid; None will do
                where there is no slide encoder.
            lengths: Tiles of each bag, 1 or more each; they sum to T.
            recompute: Keep less of the slide encoder for the backward pass, and compute it again.

        Raises:
            ValueError: If features, cells or lengths do not fit.
        """
        pooled = self._pooled(features_TD, cell_T2, lengths, recompute=recompute)
        embedding_BW = pooled.embedding_BW
        if hasattr(self, "shortcut_norm"):
            attention = pooled.attention_TA
            tiles_BD = (
                bag_means(features_TD, lengths)
                if attention is None
                else bag_sums(attention, features_TD, lengths)[:, 0]
            )
            embedding_BW = torch.cat([embedding_BW, self.shortcut_norm(tiles_BD)], dim=-1)
        logits_BC = self.head(self.dropout(embedding_BW)).float()
        return SlideOutput(logits_BC, pooled.attention_TA, pooled.instances)

    def _pooled(
        self,
        features_TD: Tensor,
        cell_T2: Tensor | None,
        lengths: Sequence[int],
        *,
        recompute: bool,
    ) -> PooledBags:
        if self.route == "pool":
            if hasattr(self, "slide_encoder"):
                features_TD = self.slide_encoder(
                    features_TD, cell_T2, lengths, recompute=recompute
                ).tile_TD
            pooled: PooledBags = self.pooling(features_TD, lengths, cell_T2=cell_T2)
            return pooled
        embedding_BW = self.slide_encoder.pooled(
            features_TD,
            cell_T2,
            lengths,
            layers=self.layers,
            pooling=self.route,
            recompute=recompute,
        )
        return PooledBags(embedding_BW.float(), None)

    @property
    def n_layers(self) -> int:
        """Number of the last layer, which is the head's: blocks of the slide encoder, plus 1."""
        return 1 + (len(self.slide_encoder.blocks) if hasattr(self, "slide_encoder") else 0)

    def parameter_layers(self) -> dict[str, int]:
        """Layer of each parameter, by name, for learning rates that fall off with depth.

        The slide encoder's embedding and slide token are layer 0, its blocks 1 to depth; its last
        norms, the pooling and the head are ``n_layers``. A rate is
        ``decay ** (n_layers - layer)`` times the head's.

        Source: Bao et al. 2022, BEiT, arXiv:2106.08254, appendix. Prov-GigaPath's open code means
            the same but gives its tile embedding the head's rate, by a name that it misses.
        """
        return {name: self._layer(name) for name, _ in self.named_parameters()}

    def _layer(self, name: str) -> int:
        match name.split("."):
            case ["slide_encoder", "tile_embed" | "slide_token", *_]:
                return 0
            case ["slide_encoder", "blocks", number, *_]:
                return 1 + int(number)
            case _:
                return self.n_layers
