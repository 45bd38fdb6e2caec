"""Multi-head self-attention over packed sequences of several lengths.

Shape suffixes: T packed tokens, B sequences, N tokens, H heads, D width, E width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from anlage.models.layers.packing import SequenceShape, pack, unpack


class SelfAttention(nn.Module):
    """Self-attention within each sequence; projections run once over all of them.

    Args:
        width: Token width D, a multiple of ``n_heads``.
        n_heads: Attention heads H.
        qk_norm: LayerNorm over each head's queries and keys before their dot product, which
            bounds the attention logits.

    Raises:
        ValueError: If ``width`` is not a multiple of ``n_heads``.

    Source: Dehghani et al. 2023, ViT-22B, arXiv:2302.05442, section 2 (QK norm). Parameter names
        and the order of q, k, v in ``qkv`` are timm's.
    """

    def __init__(self, *, width: int, n_heads: int, qk_norm: bool = False) -> None:
        super().__init__()
        if n_heads < 1 or width % n_heads:
            msg = (
                f"SelfAttention: needs a width that is a multiple of n_heads; got width={width}, "
                f"n_heads={n_heads}. Choose n_heads among the divisors of the width, such that a "
                "head is 32 to 64 wide."
            )
            raise ValueError(msg)
        self.n_heads = n_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.LayerNorm(width // n_heads, eps=1e-6) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(width // n_heads, eps=1e-6) if qk_norm else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, tokens_TD: Tensor, shapes: Sequence[SequenceShape]) -> Tensor:
        """Mix the tokens of each sequence.

        Args:
            tokens_TD: (T, D) packed tokens.
            shapes: How the rows divide into sequences.

        Returns:
            (T, D) tokens in the same order.
        """
        qkv_T3HE = self.qkv(tokens_TD).unflatten(-1, (3, self.n_heads, -1))
        mixed_RBND = [self._attend(qkv_BN3HE) for qkv_BN3HE in unpack(qkv_T3HE, shapes)]
        mixed: Tensor = self.proj(pack(mixed_RBND)[0])
        return mixed

    def _attend(self, qkv_BN3HE: Tensor) -> Tensor:
        query_BHNE, key_BHNE, value_BHNE = (part.transpose(1, 2) for part in qkv_BN3HE.unbind(2))
        mixed_BHNE = functional.scaled_dot_product_attention(
            self.q_norm(query_BHNE), self.k_norm(key_BHNE), value_BHNE
        )
        return mixed_BHNE.transpose(1, 2).flatten(2)
