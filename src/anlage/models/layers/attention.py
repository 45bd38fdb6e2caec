"""Multi-head self-attention over packed sequences of several lengths.

Shape suffixes: T packed tokens, R resolutions, B sequences, N tokens, H heads, D width, E
width of a head, F three widths.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from anlage.models.layers.packing import SequenceShape, pack, unpack
from anlage.models.layers.recompute import linear_after, with_gain


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

    def forward(
        self,
        tokens_TD: Tensor,
        shapes: Sequence[SequenceShape],
        *,
        between: tuple[nn.Module, nn.Module] | None = None,
    ) -> Tensor:
        """Mix the tokens of each sequence.

        Args:
            tokens_TD: (T, D) packed tokens.
            shapes: How the rows divide into sequences.
            between: A norm that runs before and a LayerScale that runs after, taken in here so
                that little is kept for the backward pass; None for neither.

        Returns:
            (T, D) tokens in the same order.
        """
        if between is None:
            mixed: Tensor = self.proj(_packed(*self._mixed(self.qkv(tokens_TD), shapes)))
            return mixed
        norm, gain = between
        mixed_RBND = self._mixed(linear_after(norm, tokens_TD, layer=self.qkv), shapes)
        return linear_after(_packed, *mixed_RBND, layer=with_gain(self.proj, gain))

    def _mixed(self, qkv_TF: Tensor, shapes: Sequence[SequenceShape]) -> list[Tensor]:
        qkv_T3HE = qkv_TF.view(len(qkv_TF), 3, self.n_heads, -1)
        return [self._attend(qkv_BN3HE) for qkv_BN3HE in unpack(qkv_T3HE, shapes)]

    def _attend(self, qkv_BN3HE: Tensor) -> Tensor:
        query_BHNE, key_BHNE, value_BHNE = (part.transpose(1, 2) for part in qkv_BN3HE.unbind(2))
        mixed_BHNE = functional.scaled_dot_product_attention(
            self.q_norm(query_BHNE), self.k_norm(key_BHNE), value_BHNE
        )
        return mixed_BHNE.transpose(1, 2).flatten(2)


def _packed(*mixed_RBND: Tensor) -> Tensor:
    return pack(mixed_RBND)[0]
