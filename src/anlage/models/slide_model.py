"""From the tiles of a slide to its label: slide encoder, pooling and head in one network.

Shape suffixes: T tiles of all bags, B bags, D width of the tile features, W width before the head,
A attention branches, C outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from anlage.models.bag_pooling.kinds import build_pooling
from anlage.models.bag_pooling.segments import (
    BagPooling,
    InstanceLogits,
    PooledBags,
    bag_means,
    bag_sums,
    refuse_bags,
    wide,
)
from anlage.models.bag_pooling.settings import refuse_dropout
from anlage.models.slide_encoder import SlideEncoder
from anlage.models.slide_heads import Head, slide_head

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
        pooling: ``kind`` and its settings, for route ``pool``; None for gated ABMIL.
        shortcut: Concatenate the tile features themselves, pooled with the same attention (or
            their mean) and normalised, to what the head gets.
        head: ``linear``, or ``ordered`` for grades.
        head_hidden: Widths of layers with ReLU before the head's last.
        dropout: Before the head while training, in [0, 1).

    Raises:
        ValueError: If the parts do not fit each other.

    Source: Xu et al. 2024, Prov-GigaPath, Nature 630, methods (fine-tuning); the form of the
        shortcut is ours.
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
        head: Head = "linear",
        head_hidden: Sequence[int] = (),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check_route(route, layers, pooling, has_encoder=slide_encoder is not None)
        refuse_dropout("SlideModel", dropout)
        self.input_width, self.n_outputs, self.route = input_width, n_outputs, route
        self.layers = None if layers is None else tuple(layers)
        self.slide_encoder = (
            None
            if slide_encoder is None
            else SlideEncoder(input_width=input_width, **slide_encoder)
        )
        depth = 0 if self.slide_encoder is None else self.slide_encoder.depth
        _check_layers(layers, depth=depth)
        tile_width = input_width if self.slide_encoder is None else self.slide_encoder.width
        self.pooling: BagPooling | None = None
        if route == "pool":
            self.pooling = build_pooling(
                **(pooling or {"kind": "gated_abmil"}),
                input_width=tile_width,
                n_classes=max(2, n_outputs),
            )
        width = self.pooling.out_width if self.pooling else tile_width * len(self.layers or (None,))
        self.shortcut_norm = nn.LayerNorm(input_width) if shortcut else None
        self.dropout = nn.Dropout(dropout)
        self.head = slide_head(
            width + shortcut * input_width,
            n_outputs,
            kind=head,
            hidden=head_hidden,
            is_branched=self.pooling is not None and self.pooling.is_branched,
        )

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
            features_TD: (T, D) features of the tiles of all bags, any floating dtype.
            cell_T2: (T, 2) int64 cells of the tiles on the slide encoder's grid; None will do
                where there is no slide encoder.
            lengths: Tiles of each bag, 1 or more each; they sum to T.
            recompute: Keep less of the slide encoder for the backward pass, and compute it again.

        Raises:
            ValueError: If features, cells or lengths do not fit.
        """
        refuse_bags("SlideModel", features_TD, lengths, width=self.input_width)
        features_TD = wide(features_TD)
        pooled = self._pooled(features_TD, cell_T2, lengths, recompute=recompute)
        embedding_BW = pooled.embedding_BW
        if self.shortcut_norm is not None:
            tiles_BD = self._tiles(features_TD, pooled, lengths)
            embedding_BW = torch.cat([embedding_BW, self.shortcut_norm(tiles_BD)], dim=-1)
        logits_BC = wide(self.head(self.dropout(embedding_BW)))
        return SlideOutput(logits_BC, pooled.attention_TA, pooled.instances)

    def _tiles(self, features_TD: Tensor, pooled: PooledBags, lengths: Sequence[int]) -> Tensor:
        """(B, D) or (B, A, D) tile features themselves, pooled like their context."""
        if pooled.attention_TA is None:
            return bag_means(features_TD, lengths)
        tiles_BAD = bag_sums(pooled.attention_TA, features_TD, lengths)
        return tiles_BAD if pooled.embedding_BW.ndim == 3 else tiles_BAD.mean(dim=1)

    def _pooled(
        self,
        features_TD: Tensor,
        cell_T2: Tensor | None,
        lengths: Sequence[int],
        *,
        recompute: bool,
    ) -> PooledBags:
        if self.slide_encoder is None:
            assert self.pooling is not None, "other routes need a slide encoder"
            return self.pooling(features_TD, lengths, cell_T2=cell_T2)  # type: ignore[no-any-return]
        if cell_T2 is None:
            msg = (
                "SlideModel: needs the cell of each tile, for its slide encoder; got None. "
                "Take bags with coordinates, and pass grid_cells(...) of them."
            )
            raise ValueError(msg)
        if self.pooling is not None:
            states = self.slide_encoder(features_TD, cell_T2, lengths, recompute=recompute)
            return self.pooling(states.tile_TD, lengths, cell_T2=cell_T2)  # type: ignore[no-any-return]
        embedding_BW = self.slide_encoder.pooled(
            features_TD,
            cell_T2,
            lengths,
            layers=self.layers,
            pooling="cls" if self.route == "cls" else "mean",
            recompute=recompute,
        )
        return PooledBags(wide(embedding_BW), None)

    @property
    def n_layers(self) -> int:
        """Number of the last layer, which is the head's: blocks of the slide encoder, plus 1."""
        return 1 + (0 if self.slide_encoder is None else self.slide_encoder.depth)

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


def _check_route(
    route: str,
    layers: Sequence[int] | None,
    pooling: Mapping[str, Any] | None,
    *,
    has_encoder: bool,
) -> None:
    if route not in get_args(Route):
        msg = f"SlideModel: needs route 'pool', 'cls' or 'mean'; got {route!r}. Choose one of them."
        raise ValueError(msg)
    if route == "pool" and layers is not None:
        msg = (
            f"SlideModel: needs no layers with route 'pool', which takes the output; got "
            f"{list(layers)}. Leave them out, or take route 'cls'."
        )
        raise ValueError(msg)
    if route != "pool" and (pooling is not None or not has_encoder):
        msg = (
            f"SlideModel: needs a slide encoder and no pooling for route {route!r}; got "
            f"pooling={pooling}, slide encoder {'given' if has_encoder else 'missing'}. "
            "Take route 'pool', or give a slide encoder and leave the pooling out."
        )
        raise ValueError(msg)


def _check_layers(layers: Sequence[int] | None, *, depth: int) -> None:
    if layers is not None and (not layers or min(layers) < 0 or max(layers) > depth):
        msg = (
            f"SlideModel: needs layers from 0 (the embedded input) to {depth} (the last block); "
            f"got {list(layers)}. Leave layers out for the output of the slide encoder."
        )
        raise ValueError(msg)
