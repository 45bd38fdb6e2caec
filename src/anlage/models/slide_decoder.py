"""The decoder of masked slide pretraining: what was seen of a bag in, hidden tiles out.

Shape suffixes: T tiles of all bags, V visible tiles of them, M hidden ones (T - V), B bags, R rows
(a slide token and the tiles of each bag; T + B), D width of the encoder, W width of the decoder, I
width of a tile embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from anlage.models.dilated_attention import Branch, HeadPhase, Pad, plan_dilated
from anlage.models.grid_positions import grid_positions
from anlage.models.layers.long_net_block import LongNetBlock
from anlage.models.slide_encoder import SlideStates


class SlideDecoder(nn.Module):
    """Predicts the embeddings of hidden tiles from what the encoder says of the visible ones.

    A learned token stands in the place of each hidden tile; all tiles get their positions, the
    slide token none, and blocks of dilated attention run over the whole bag.

    Args:
        encoder_width: Width D of what the encoder says.
        output_width: Width I of a tile embedding.
        width: Width W of a token, a multiple of 4.
        depth: Number of blocks.
        n_heads: Attention heads; must divide ``width``.
        mlp_ratio: Hidden width of the feed-forward layer over ``width``.
        segments: Segment of each branch of dilated attention, tokens.
        dilations: Dilation of each branch.
        head_phase: As the encoder has it.
        pad: As the encoder has it.

    Source: He et al. 2022, MAE, arXiv:2111.06377, section 3, with LongNet's blocks; Prov-GigaPath's
    decoder is not published, so width and depth are ours.
    """

    def __init__(
        self,
        *,
        encoder_width: int,
        output_width: int,
        width: int,
        depth: int,
        n_heads: int,
        mlp_ratio: float = 4.0,
        segments: Sequence[int],
        dilations: Sequence[int],
        head_phase: HeadPhase = "torchscale",
        pad: Pad = "masked",
    ) -> None:
        super().__init__()
        self.width, self.n_heads, self.head_phase, self.pad = width, n_heads, head_phase, pad
        self.branches = tuple(Branch(*pair) for pair in zip(segments, dilations, strict=True))
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.empty(1, width))
        self.blocks = nn.ModuleList(
            LongNetBlock(
                width=width,
                n_heads=n_heads,
                mlp_ratio=mlp_ratio,
                dropout=0.0,
                stochastic_depth=0.0,
                norm_eps=1e-5,
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.to_tile = nn.Linear(width, output_width)
        self._initialise()

    def _initialise(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                for part in module.weight.data.chunk(3 if name.endswith("attn.qkv") else 1):
                    nn.init.xavier_uniform_(part)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self,
        states: SlideStates,
        cell_T2: Tensor,
        is_visible_T: Tensor,
        lengths: Sequence[int],
        *,
        recompute: bool = False,
    ) -> Tensor:
        """Predict the hidden tiles of packed bags.

        Args:
            states: What the encoder says of the bags (B, D) and of their visible tiles (V, D).
            cell_T2: (T, 2) int64 cells (x, y) of all tiles, visible and hidden.
            is_visible_T: (T,) bool; its true values are V.
            lengths: Tiles of each bag; their sum is T.
            recompute: Keep the inputs of blocks alone for the backward pass.

        Returns:
            (M, I) predictions of the hidden tiles, in their order.

        Raises:
            ValueError: If shapes and lengths do not fit each other.
        """
        _check(states, cell_T2, is_visible_T, lengths)
        row_lengths = [n_tiles + 1 for n_tiles in lengths]
        slide_BW, seen_VW = self.embed(states.slide_BD), self.embed(states.tile_TD)
        hidden_TW = self.mask_token.to(seen_VW.dtype).expand(len(cell_T2), -1)
        tile_TW = hidden_TW.clone()
        tile_TW[is_visible_T] = seen_VW
        tile_TW = tile_TW + grid_positions(cell_T2, width=self.width)
        slide_BW = slide_BW.to(tile_TW.dtype)
        bags = zip(torch.split(slide_BW, 1), torch.split(tile_TW, list(lengths)), strict=True)
        rows_RW = torch.cat([part for bag in bags for part in bag])
        plan = plan_dilated(
            row_lengths,
            branches=self.branches,
            n_heads=self.n_heads,
            head_phase=self.head_phase,
            pad=self.pad,
            device=rows_RW.device,
        )
        for block in self.blocks:
            rows_RW = block(rows_RW, plan, lengths=row_lengths, recompute=recompute)
        tile_rows = torch.cat([bag_LW[1:] for bag_LW in torch.split(rows_RW, row_lengths)])
        predicted_MI: Tensor = self.to_tile(self.norm(tile_rows[~is_visible_T]))
        return predicted_MI


def _check(
    states: SlideStates, cell_T2: Tensor, is_visible_T: Tensor, lengths: Sequence[int]
) -> None:
    n_tiles, n_seen = len(cell_T2), len(states.tile_TD)
    fits = len(states.slide_BD) == len(lengths) and sum(lengths) == n_tiles
    if not fits or is_visible_T.shape != (n_tiles,) or int(is_visible_T.sum()) != n_seen:
        msg = (
            "SlideDecoder: needs a slide token for each bag, a cell for each tile, and a state for "
            f"each visible tile; got {len(states.slide_BD)} tokens, {n_tiles} cells, {n_seen} "
            f"states, {int(is_visible_T.sum())} of {len(is_visible_T)} visible, and lengths "
            f"{list(lengths)[:8]}. Give all of them of the same bags."
        )
        raise ValueError(msg)
