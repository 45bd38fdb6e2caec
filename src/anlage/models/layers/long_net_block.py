"""One LongNet block: dilated attention and feed-forward, each with a norm before its last layer.

Shape suffixes: T tokens of all bags, B bags, D width, F hidden width, H heads, E width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from anlage.models.dilated_attention import DilatedPlan, dilated_self_attention

CHUNK_TOKENS = 8192
"""Tokens that pass the feed-forward layer at a time where no gradient is asked for."""


class DilatedSelfAttention(nn.Module):
    """Dilated self-attention with sub-LN: a LayerNorm between the heads and ``proj``.

    Args:
        width: Token width D, a multiple of ``n_heads``.
        n_heads: Attention heads H.
        norm_eps: Epsilon of the inner norm.

    Raises:
        ValueError: If ``width`` is not a multiple of ``n_heads``.

    Source: Ding et al. 2023, LongNet, arXiv:2307.02486; Wang et al. 2022, Foundation
        Transformers, arXiv:2210.06423 (sub-LN).
    """

    def __init__(self, *, width: int, n_heads: int, norm_eps: float = 1e-5) -> None:
        super().__init__()
        if n_heads < 1 or width % n_heads:
            msg = (
                f"DilatedSelfAttention: needs a width that is a multiple of n_heads; got "
                f"width={width}, n_heads={n_heads}. Choose n_heads among the divisors of the width."
            )
            raise ValueError(msg)
        self.n_heads = n_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.inner_norm = nn.LayerNorm(width, eps=norm_eps)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens_TD: Tensor, plan: DilatedPlan) -> Tensor:
        """Mix the tokens of each bag, (T, D) -> (T, D)."""
        qkv_T3HE = self.qkv(tokens_TD).view(len(tokens_TD), 3, self.n_heads, -1)
        mixed_THE = dilated_self_attention(qkv_T3HE, plan)
        out: Tensor = self.proj(self.inner_norm(mixed_THE.flatten(1)))
        return out


class SubNormMlp(nn.Module):
    """GELU MLP with sub-LN: a LayerNorm between its two linear layers.

    Args:
        width: Token width D.
        hidden: Hidden width F.
        norm_eps: Epsilon of the inner norm.
    """

    def __init__(self, *, width: int, hidden: int, norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.inner_norm = nn.LayerNorm(hidden, eps=norm_eps)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens_TD: Tensor) -> Tensor:
        """Transform each token by itself, (T, D) -> (T, D)."""
        out: Tensor = self.fc2(self.inner_norm(functional.gelu(self.fc1(tokens_TD))))
        return out


class LongNetBlock(nn.Module):
    """Pre-norm block over packed bags.

    Randomness, of dropout and of which bags skip a branch, comes from torch's global generator.

    Args:
        width: Token width D.
        n_heads: Attention heads.
        mlp_ratio: Hidden width of the feed-forward layer over ``width``.
        dropout: Share of values that each branch leaves out while training.
        stochastic_depth: Chance of a bag to skip a branch while training, in [0, 1).
        norm_eps: Epsilon of all its LayerNorms.
    """

    def __init__(
        self,
        *,
        width: int,
        n_heads: int,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.stochastic_depth = stochastic_depth
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = DilatedSelfAttention(width=width, n_heads=n_heads, norm_eps=norm_eps)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = SubNormMlp(width=width, hidden=int(width * mlp_ratio), norm_eps=norm_eps)

    def forward(
        self, tokens_TD: Tensor, plan: DilatedPlan, *, lengths: Sequence[int], recompute: bool
    ) -> Tensor:
        """Run both branches.

        Args:
            tokens_TD: (T, D) tokens of all bags.
            plan: Made for these bags.
            lengths: Tokens of each bag, as the plan has them.
            recompute: Keep only the block's input for the backward pass, and run the block again
                there, with the same randomness.

        Returns:
            (T, D) tokens in the same order.
        """
        if not (recompute and torch.is_grad_enabled()):
            return self._branches(tokens_TD, plan, lengths)
        out: Tensor = checkpoint(self._branches, tokens_TD, plan, lengths, use_reentrant=False)
        return out

    def _branches(self, tokens_TD: Tensor, plan: DilatedPlan, lengths: Sequence[int]) -> Tensor:
        tokens_TD = tokens_TD + self._thinned(self.attn(self.norm1(tokens_TD), plan), lengths)
        if torch.is_grad_enabled() or self.training:
            return tokens_TD + self._thinned(self.mlp(self.norm2(tokens_TD)), lengths)
        for chunk_TD in torch.split(tokens_TD, CHUNK_TOKENS):
            chunk_TD.add_(self.mlp(self.norm2(chunk_TD)))
        return tokens_TD

    def _thinned(self, change_TD: Tensor, lengths: Sequence[int]) -> Tensor:
        """Dropout, then stochastic depth by bag, as torchscale has them."""
        change_TD = functional.dropout(change_TD, self.dropout, self.training)
        if not (self.training and self.stochastic_depth):
            return change_TD
        keep = 1 - self.stochastic_depth
        kept_B = change_TD.new_empty(len(lengths)).bernoulli_(keep).div_(keep)
        length_B = torch.tensor(lengths, device=change_TD.device)
        kept_T = kept_B.repeat_interleave(length_B, output_size=len(change_TD))
        return change_TD * kept_T[:, None]
