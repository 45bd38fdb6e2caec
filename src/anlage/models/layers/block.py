"""One transformer block: attention and feed-forward, each on a pre-normalised residual branch.

Shape suffixes: T packed tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from anlage.models.layers.attention import SelfAttention
from anlage.models.layers.feed_forward import GeluMlp, SwiGlu
from anlage.models.layers.packing import SequenceShape
from anlage.models.layers.stochastic_depth import keep_sequences

Branch = Callable[[Tensor, Sequence[SequenceShape]], Tensor]


class LayerScale(nn.Module):
    """A learned gain a channel on a residual branch.

    Args:
        width: Token width D.
        initial: Gain at the start of training, small so that a block starts near identity.

    Source: Touvron et al. 2021, CaiT, arXiv:2103.17239, section 2.
    """

    def __init__(self, *, width: int, initial: float) -> None:
        super().__init__()
        self.initial = initial
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, tokens_TD: Tensor) -> Tensor:
        """Scale the channels, (T, D) -> (T, D)."""
        return tokens_TD * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block over packed sequences.

    Args:
        width: Token width D.
        n_heads: Attention heads.
        mlp_ratio: Hidden width of the feed-forward layer over ``width``.
        feed_forward: ``mlp`` or ``swiglu``.
        layer_scale: Initial gain of the residual branches; None for no LayerScale.
        stochastic_depth: Share of sequences that skip a branch while training, in [0, 1).
        qk_norm: LayerNorm on queries and keys.
    """

    def __init__(
        self,
        *,
        width: int,
        n_heads: int,
        mlp_ratio: float = 4.0,
        feed_forward: Literal["mlp", "swiglu"] = "mlp",
        layer_scale: float | None = None,
        stochastic_depth: float = 0.0,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        self.stochastic_depth = stochastic_depth
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = SelfAttention(width=width, n_heads=n_heads, qk_norm=qk_norm)
        self.ls1 = _gain(width, layer_scale)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        layer = SwiGlu if feed_forward == "swiglu" else GeluMlp
        self.mlp = layer(width=width, hidden=int(width * mlp_ratio))
        self.ls2 = _gain(width, layer_scale)

    def forward(
        self,
        tokens_TD: Tensor,
        shapes: Sequence[SequenceShape],
        generator: torch.Generator | None = None,
        *,
        recompute: bool = False,
    ) -> Tensor:
        """Run both branches.

        Args:
            tokens_TD: (T, D) packed tokens.
            shapes: How the rows divide into sequences.
            generator: Randomness of stochastic depth; None for torch's global one.
            recompute: Whether norms and activations run again in the backward pass instead of
                being kept.

        Returns:
            (T, D) tokens in the same order.
        """
        attention, feed_forward = self._attention, self._feed_forward
        if recompute:
            attention, feed_forward = self._attention_again, self._feed_forward_again
        tokens_TD = self._add(tokens_TD, shapes, attention, generator)
        return self._add(tokens_TD, shapes, feed_forward, generator)

    def _attention(self, tokens_TD: Tensor, shapes: Sequence[SequenceShape]) -> Tensor:
        out: Tensor = self.ls1(self.attn(self.norm1(tokens_TD), shapes))
        return out

    def _feed_forward(self, tokens_TD: Tensor, _shapes: Sequence[SequenceShape]) -> Tensor:
        out: Tensor = self.ls2(self.mlp(self.norm2(tokens_TD)))
        return out

    def _attention_again(self, tokens_TD: Tensor, shapes: Sequence[SequenceShape]) -> Tensor:
        out: Tensor = self.attn(tokens_TD, shapes, between=(self.norm1, self.ls1))
        return out

    def _feed_forward_again(self, tokens_TD: Tensor, _shapes: Sequence[SequenceShape]) -> Tensor:
        out: Tensor = self.mlp(tokens_TD, between=(self.norm2, self.ls2))
        return out

    def _add(
        self,
        tokens_TD: Tensor,
        shapes: Sequence[SequenceShape],
        branch: Branch,
        generator: torch.Generator | None,
    ) -> Tensor:
        if not self.training or self.stochastic_depth == 0:
            return tokens_TD + branch(tokens_TD, shapes)
        kept = keep_sequences(
            shapes, rate=self.stochastic_depth, device=tokens_TD.device, generator=generator
        )
        change_KD = branch(tokens_TD[kept.row_K], kept.shapes) * kept.scale_K1
        return tokens_TD.index_add(0, kept.row_K, change_KD.to(tokens_TD.dtype))


def _gain(width: int, initial: float | None) -> nn.Module:
    return nn.Identity() if initial is None else LayerScale(width=width, initial=initial)
