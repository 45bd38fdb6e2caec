"""One transformer block: attention and feed-forward, each on a pre-normalised residual branch.

Shape suffixes: T packed tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from anlage.models.layers.attention import SelfAttention
from anlage.models.layers.feed_forward import GeluMlp, SwiGlu
from anlage.models.layers.packing import SequenceShape
from anlage.models.layers.recompute import Recompute, run_again
from anlage.models.layers.stochastic_depth import KeptSequences, keep_sequences

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

    A pass draws nothing: who takes part in a branch is drawn beforehand, so that the pass is a
    function of tensors and compiles to one graph for each list of shapes.

    Args:
        width: Token width D.
        n_heads: Attention heads.
        mlp_ratio: Hidden width of the feed-forward layer over ``width``.
        feed_forward: ``mlp`` or ``swiglu``.
        layer_scale: Initial gain of the residual branches; None for no LayerScale.
        stochastic_depth: Share of sequences that skip a branch while training, in [0, 1).
        qk_norm: LayerNorm on queries and keys.
        norm_eps: Epsilon of the LayerNorms before the branches.
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
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.stochastic_depth = stochastic_depth
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = SelfAttention(width=width, n_heads=n_heads, qk_norm=qk_norm)
        self.ls1 = _gain(width, layer_scale)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        layer = SwiGlu if feed_forward == "swiglu" else GeluMlp
        self.mlp = layer(width=width, hidden=int(width * mlp_ratio))
        self.ls2 = _gain(width, layer_scale)

    def draw(
        self,
        shapes: Sequence[SequenceShape],
        *,
        device: torch.device,
        generator: torch.Generator | None = None,
    ) -> tuple[KeptSequences, KeptSequences] | None:
        """Draw which sequences take part in each branch of one pass.

        Args:
            shapes: How the packed rows divide into sequences.
            device: Where the tokens are.
            generator: Source of randomness on ``device``; None for torch's global one there.

        Returns:
            Those of attention, drawn first, and of the feed-forward layer; None, and nothing is
            drawn, where all take part: out of training, or without stochastic depth.
        """
        if not self.training or self.stochastic_depth == 0:
            return None
        draw = partial(
            keep_sequences,
            shapes,
            rate=self.stochastic_depth,
            device=device,
            generator=generator,
        )
        return draw(), draw()

    def forward(
        self,
        tokens_TD: Tensor,
        shapes: Sequence[SequenceShape],
        kept: tuple[KeptSequences, KeptSequences] | None = None,
        *,
        recompute: Recompute = "none",
    ) -> Tensor:
        """Run both branches.

        Args:
            tokens_TD: (T, D) packed tokens.
            shapes: How the rows divide into sequences.
            kept: What takes part in attention and in the feed-forward layer; None for all.
            recompute: What runs again in the backward pass instead of being kept: ``none``,
                ``selective`` (norms and activations) or ``full`` (the block; its input is kept).

        Returns:
            (T, D) tokens in the same order.
        """
        if recompute == "full":
            return run_again(
                lambda again_TD: self._branches(again_TD, shapes, kept, lean=False), tokens_TD
            )
        return self._branches(tokens_TD, shapes, kept, lean=recompute == "selective")

    def _branches(
        self,
        tokens_TD: Tensor,
        shapes: Sequence[SequenceShape],
        kept: tuple[KeptSequences, KeptSequences] | None,
        *,
        lean: bool,
    ) -> Tensor:
        attention, feed_forward = self._attention, self._feed_forward
        if lean:
            attention, feed_forward = self._attention_again, self._feed_forward_again
        of_attention, of_feed_forward = (None, None) if kept is None else kept
        tokens_TD = _add(tokens_TD, shapes, attention, of_attention)
        return _add(tokens_TD, shapes, feed_forward, of_feed_forward)

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
    tokens_TD: Tensor,
    shapes: Sequence[SequenceShape],
    branch: Branch,
    kept: KeptSequences | None,
) -> Tensor:
    if kept is None:
        return tokens_TD + branch(tokens_TD, shapes)
    change_KD = branch(tokens_TD[kept.row_K], kept.shapes) * kept.scale_K1
    return tokens_TD.index_add(0, kept.row_K, change_KD.to(tokens_TD.dtype))


def _gain(width: int, initial: float | None) -> nn.Module:
    return nn.Identity() if initial is None else LayerScale(width=width, initial=initial)
