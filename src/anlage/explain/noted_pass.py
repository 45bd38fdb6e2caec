"""One pass through a transformer that keeps what its attention layers were given.

Shape suffixes: B images, 3 channels, H heads (in images: height and width), T packed tokens, S
tokens of an image, E width of a head, D width.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from anlage.models.layers.attention import SelfAttention
from anlage.models.layers.packing import unpack
from anlage.models.vit import TokenOutput, VisionTransformer


class NotedAttention(NamedTuple):
    """An attention layer and its input.

    Attributes:
        attention: The layer.
        tokens_BSD: (B, S, D) normalised tokens it was given: class, registers, patches.
    """

    attention: SelfAttention
    tokens_BSD: Tensor

    def query_and_key(self) -> tuple[Tensor, Tensor]:
        """Queries and keys whose dot products it takes: (B, H, S, E) float32 each, unscaled."""
        with torch.inference_mode():
            qkv_BSF = self.attention.qkv(self.tokens_BSD)
            qkv_BS3HE = qkv_BSF.unflatten(-1, (3, self.attention.n_heads, -1))
            query_BHSE = self.attention.q_norm(qkv_BS3HE[:, :, 0].transpose(1, 2))
            key_BHSE = self.attention.k_norm(qkv_BS3HE[:, :, 1].transpose(1, 2))
        return query_BHSE.float(), key_BHSE.float()


class NotedPass(NamedTuple):
    """Tokens of a pass, and what was noted on the way.

    Attributes:
        tokens: Class, register and patch tokens of the images.
        layers: Attention of the blocks asked for, in their order.
        grid: Rows and columns of patches.
    """

    tokens: TokenOutput
    layers: tuple[NotedAttention, ...]
    grid: tuple[int, int]


def noted_pass(
    model: VisionTransformer, image_B3HW: Tensor, *, blocks: Iterable[int], who: str
) -> NotedPass:
    """Run the model once and keep the inputs of some attention layers.

    Args:
        model: The transformer, in evaluation mode.
        image_B3HW: (B, 3, height, width) normalised images on the model's device.
        blocks: Whose attention is noted, each from 0, or from the last with -1; a noted layer
            costs B * S * D numbers of memory.
        who: The caller, for errors.

    Raises:
        ValueError: If there is no such block, the model is in training mode (which drops images
            from a block), or the images do not fit the model.
    """
    attentions = [_attention_of(model, block, who) for block in blocks]
    seen: dict[SelfAttention, Tensor] = {}

    def note(attention: nn.Module, given: tuple[Any, ...]) -> None:
        assert isinstance(attention, SelfAttention), "it was put on no other"
        (seen[attention],) = unpack(given[0], given[1])

    hooks = [attention.register_forward_pre_hook(note) for attention in attentions]
    try:
        with torch.inference_mode():
            tokens = model.embed(image_B3HW)
    finally:
        for hook in hooks:
            hook.remove()
    rows, columns = (edge // model.patch_px for edge in image_B3HW.shape[2:])
    layers = tuple(NotedAttention(attention, seen[attention]) for attention in attentions)
    return NotedPass(tokens, layers, (rows, columns))


def _attention_of(model: VisionTransformer, block: int, who: str) -> SelfAttention:
    if model.training:
        msg = (
            f"{who}: needs a model in evaluation mode; got one in training, which drops "
            "images from a block. Call model.eval() first."
        )
        raise ValueError(msg)
    depth = len(model.blocks)
    if not -depth <= block < depth:
        msg = (
            f"{who}: block needs to be {-depth} to {depth - 1}; got {block}. The last block is -1."
        )
        raise ValueError(msg)
    attention = model.blocks[block].attn
    assert isinstance(attention, SelfAttention)
    return attention
