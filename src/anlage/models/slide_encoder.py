"""The slide encoder of anlage: tile embeddings of slides in, slide embeddings out.

Shape suffixes: T tiles of all bags, B bags, R rows (a slide token and the tiles of each bag, one
bag after the other; R = T + B), D width, I width of a tile embedding, K states, P width of what is
pooled (K * D).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from anlage.models.dilated_attention import Branch, DilatedPlan, HeadPhase, Pad, plan_dilated
from anlage.models.grid_positions import grid_positions
from anlage.models.layers.long_net_block import LongNetBlock

SlidePooling = Literal["cls", "mean"]


class SlideStates(NamedTuple):
    """What the slide encoder says, after its two last norms.

    Attributes:
        slide_BD: (B, D) slide tokens.
        tile_TD: (T, D) tiles in the context of their slide.
    """

    slide_BD: Tensor
    tile_TD: Tensor


class SlideEncoder(nn.Module):
    """Packed bags of tile embeddings to slide tokens and tiles in context: LongNet.

    A linear layer takes each tile to the width, its position is added, a learned slide token comes
    first in each bag, and blocks of dilated attention follow. No bag sees another, so what a bag
    gives does not depend on what it is batched with.

    Args:
        input_width: Width I of the tile embeddings.
        width: Width D, a multiple of 4.
        depth: Number of blocks.
        n_heads: Attention heads; must divide ``width``.
        mlp_ratio: Hidden width of the feed-forward layers over ``width``.
        segments: Segment of each branch of dilated attention, tokens.
        dilations: Step of each branch, as many.
        head_phase: At which token of a segment each head begins: see ``head_phases``.
        pad: What fills a segment that is not full: see ``plan_dilated``. ``zero`` is what published
            weights were trained with, ``masked`` leaves the filling out.
        dropout: Share of values dropped while training, in [0, 1).
        stochastic_depth: Share of bags that skip the last block's branches while training, in
            [0, 1); it grows from 0 at the first block.

    Raises:
        ValueError: If the sizes do not fit each other.

    Source: Ding et al. 2023, LongNet, arXiv:2307.02486; Xu et al. 2024, Prov-GigaPath, Nature 630,
        and its official code, for norms, positions and first weights.
    """

    def __init__(
        self,
        *,
        input_width: int,
        width: int,
        depth: int,
        n_heads: int,
        mlp_ratio: float = 4.0,
        segments: Sequence[int],
        dilations: Sequence[int],
        head_phase: HeadPhase = "torchscale",
        pad: Pad = "masked",
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
    ) -> None:
        super().__init__()
        _check_sizes(input_width=input_width, width=width, depth=depth, n_heads=n_heads)
        _check_branches(segments, dilations)
        _check_shares(dropout=dropout, stochastic_depth=stochastic_depth)
        self.input_width, self.width, self.depth, self.n_heads = input_width, width, depth, n_heads
        self.branches = tuple(map(Branch, segments, dilations))
        self.head_phase, self.pad = head_phase, pad
        self.tile_embed = nn.Linear(input_width, width)
        self.slide_token = nn.Parameter(torch.empty(1, width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            LongNetBlock(
                width=width,
                n_heads=n_heads,
                mlp_ratio=mlp_ratio,
                dropout=dropout,
                stochastic_depth=stochastic_depth * index / max(depth - 1, 1),
                norm_eps=1e-5,
            )
            for index in range(depth)
        )
        self.encoder_norm = nn.LayerNorm(width, eps=1e-5)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.initialise()

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights anew, as GigaPath does.

        Linear weights by Xavier's uniform rule, queries, keys and values each as a layer of its
        own; biases zero; the slide token from a normal of deviation 0.02.

        Args:
            generator: Source of randomness on the parameters' device; None for the global one.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                for part in module.weight.chunk(3 if name.endswith("attn.qkv") else 1):
                    nn.init.xavier_uniform_(part, generator=generator)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        nn.init.normal_(self.slide_token, std=0.02, generator=generator)

    def plan(self, lengths: Sequence[int], *, device: torch.device) -> DilatedPlan:
        """Which rows attend to which.

        Args:
            lengths: Tiles of each bag, without its slide token.
            device: Where the pass will run.
        """
        return plan_dilated(
            [n_tiles + 1 for n_tiles in lengths],
            branches=self.branches,
            n_heads=self.n_heads,
            head_phase=self.head_phase,
            pad=self.pad,
            device=device,
        )

    def forward(
        self,
        features_TD: Tensor,
        cell_T2: Tensor,
        lengths: Sequence[int],
        *,
        recompute: bool = False,
    ) -> SlideStates:
        """Encode packed bags.

        Args:
            features_TD: (T, I) tile embeddings, bag after bag, of any floating dtype.
            cell_T2: (T, 2) int64 cells (x, y) of the slide's grid.
            lengths: Tiles of each bag, each at least 1; their sum is T.
            recompute: Keep the inputs of blocks alone for the backward pass, and run the blocks
                again there.

        Returns:
            Slide tokens (B, D) and tiles in context (T, D).

        Raises:
            ValueError: If shapes and lengths do not fit each other.
        """
        *_, last_RD = self.states(features_TD, cell_T2, lengths, recompute=recompute)
        first_B, tile_T = _rows(lengths, last_RD.device)
        final_RD = self.norm(self.encoder_norm(last_RD))
        return SlideStates(final_RD[first_B], final_RD[tile_T])

    def pooled(
        self,
        features_TD: Tensor,
        cell_T2: Tensor,
        lengths: Sequence[int],
        *,
        layers: Sequence[int] | None = None,
        pooling: SlidePooling = "cls",
        recompute: bool = False,
    ) -> Tensor:
        """One embedding a bag.

        State 0 is the embedded input and state k the output of block k, so that the last state is
        ``depth``, not ``depth - 1``. States pass ``norm`` alone; the output of the whole encoder
        passes ``encoder_norm`` before it. ``mean`` averages tiles without the slide token: before
        ``norm``, as GigaPath's code does.

        Args:
            features_TD: As ``forward`` takes them.
            cell_T2: Likewise.
            lengths: Likewise.
            layers: States, 0 to ``depth``, side by side in this order; None for the output.
            pooling: ``cls``, the slide token; ``mean``, the mean of the tiles.
            recompute: As ``forward`` takes it.

        Returns:
            (B, P), P the width times the number of states.

        Raises:
            ValueError: If shapes and lengths do not fit, or there is no such state or pooling.
        """
        _check_pooling(pooling)
        wanted = self.states_asked_for(layers)
        found: dict[int, Tensor] = {}
        states = self.states(features_TD, cell_T2, lengths, recompute=recompute)
        for index, state_RD in zip(range(max(wanted) + 1), states, strict=False):
            if index in wanted:
                last_RD = self.encoder_norm(state_RD) if layers is None else state_RD
                found[index] = self.norm(_pool(last_RD, lengths, pooling))
        return torch.cat([found[index] for index in wanted], dim=1)

    def states(
        self,
        features_TD: Tensor,
        cell_T2: Tensor,
        lengths: Sequence[int],
        *,
        recompute: bool = False,
    ) -> Iterator[Tensor]:
        """The rows before the first block, then after each: ``depth + 1`` of (R, D), no norm.

        Arguments and errors are those of ``forward``.
        """
        plan = self.plan(lengths, device=features_TD.device)
        row_lengths = [n_tiles + 1 for n_tiles in lengths]
        tokens_RD = self.embedded(features_TD, cell_T2, lengths)
        yield tokens_RD
        for block in self.blocks:
            tokens_RD = block(tokens_RD, plan, lengths=row_lengths, recompute=recompute)
            yield tokens_RD

    def embedded(self, features_TD: Tensor, cell_T2: Tensor, lengths: Sequence[int]) -> Tensor:
        """(R, D) rows before the first block: slide token, then tiles with their positions."""
        _check_bags(features_TD, cell_T2, lengths, input_width=self.input_width)
        tile_TD = self.tile_embed(features_TD.to(self.tile_embed.weight.dtype))
        tile_TD = tile_TD + grid_positions(cell_T2, width=self.width)
        slide_token = self.slide_token.to(tile_TD.dtype)
        parts = [part for bag in torch.split(tile_TD, list(lengths)) for part in (slide_token, bag)]
        rows_RD: Tensor = self.dropout(torch.cat(parts))
        return rows_RD

    def states_asked_for(self, layers: Sequence[int] | None) -> list[int]:
        """Which states ``pooled`` takes: those named, or the last.

        Raises:
            ValueError: If there is no such state, or none is named.
        """
        if layers is None:
            return [self.depth]
        if not layers or not all(0 <= index <= self.depth for index in layers):
            msg = (
                f"SlideEncoder: needs layers from 0 (the embedded input) to {self.depth} (the last "
                f"block); got {list(layers)}. Name at least one of them."
            )
            raise ValueError(msg)
        return list(layers)


def _rows(lengths: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of the slide tokens (B,), and of the tiles (T,)."""
    last_B = torch.tensor(list(accumulate(n_tiles + 1 for n_tiles in lengths)))
    first_B = torch.cat([torch.zeros(1, dtype=torch.int64), last_B[:-1]])
    is_tile_R = torch.ones(int(last_B[-1]), dtype=torch.bool)
    is_tile_R[first_B] = False
    return first_B.to(device), is_tile_R.nonzero().flatten().to(device)


def _pool(rows_RD: Tensor, lengths: Sequence[int], pooling: str) -> Tensor:
    """(B, D) slide tokens, or means of the tiles of each bag by itself."""
    bags = torch.split(rows_RD, [n_tiles + 1 for n_tiles in lengths])
    if pooling == "cls":
        return torch.stack([bag_LD[0] for bag_LD in bags])
    return torch.stack([bag_LD[1:].mean(dim=0) for bag_LD in bags])


def _check_sizes(*, input_width: int, width: int, depth: int, n_heads: int) -> None:
    if input_width < 1 or depth < 1:
        msg = (
            f"SlideEncoder: needs input_width and depth of at least 1; got {input_width} and "
            f"{depth}. Ask for at least one of each."
        )
        raise ValueError(msg)
    if n_heads < 1 or width < 4 or width % n_heads or width % 4:
        msg = (
            f"SlideEncoder: needs a width that is a multiple of 4 and of n_heads; got width "
            f"{width} and {n_heads} heads. Change one of them."
        )
        raise ValueError(msg)


def _check_branches(segments: Sequence[int], dilations: Sequence[int]) -> None:
    fits = len(segments) == len(dilations) > 0
    if not fits or min(*segments, *dilations) < 1:
        msg = (
            "SlideEncoder: needs as many dilations as segments, all at least 1; got segments "
            f"{list(segments)} and dilations {list(dilations)}. Give a pair for each branch."
        )
        raise ValueError(msg)


def _check_pooling(pooling: str) -> None:
    if pooling not in get_args(SlidePooling):
        msg = f"SlideEncoder: needs pooling 'cls' or 'mean'; got {pooling!r}. Choose one."
        raise ValueError(msg)


def _check_shares(**shares: float) -> None:
    for name, share in shares.items():
        if not 0 <= share < 1:
            msg = f"SlideEncoder: needs {name} in [0, 1); got {share}. 0 switches it off."
            raise ValueError(msg)


def _check_bags(
    features_TD: Tensor, cell_T2: Tensor, lengths: Sequence[int], *, input_width: int
) -> None:
    if features_TD.ndim != 2 or features_TD.shape[1] != input_width:
        msg = (
            f"SlideEncoder: needs (T, {input_width}) tile embeddings; got "
            f"{tuple(features_TD.shape)}. Embed the tiles with the encoder it was made for."
        )
        raise ValueError(msg)
    n_tiles = len(features_TD)
    if len(cell_T2) != n_tiles or sum(lengths) != n_tiles or min(lengths, default=0) < 1:
        msg = (
            f"SlideEncoder: needs a cell for each of {n_tiles} tiles, and lengths of at least 1 "
            f"that add up to them; got {len(cell_T2)} cells and lengths {list(lengths)[:8]}. "
            "Leave empty bags out."
        )
        raise ValueError(msg)
