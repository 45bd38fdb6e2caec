"""Where a transformer's class token looks: one map a head over the patches of an image.

Shape suffixes: B images, 3 channels, H heads, T packed tokens, S tokens of an image, E width of a
head; maps are (B, H, rows, columns).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anlage.models.layers.attention import SelfAttention
from anlage.models.layers.packing import SequenceShape, unpack
from anlage.models.vit import VisionTransformer


def attention_maps(model: VisionTransformer, image_B3HW: Tensor, *, block: int = -1) -> Tensor:
    """Attention of the class token to each patch, by head, in one block.

        softmax_s( q_cls . k_s / sqrt(E) ) over all tokens s, those of the patches kept

    Class and register tokens take their share of the softmax, so a map sums to 1 at most. Only the
    class token's row is computed: memory is B * H * S numbers beside the pass itself.

    Args:
        model: The transformer, in evaluation mode.
        image_B3HW: (B, 3, height, width) normalised images on the model's device, edges multiples
            of the patch; a larger image gives a finer map, positions being interpolated.
        block: Which block, from 0, or from the last with -1.

    Returns:
        (B, H, rows, columns) float32, each 0 to 1, on the model's device.

    Raises:
        ValueError: If there is no such block, the model is in training mode (which drops images
            from a block), or the images do not fit the model.

    Source: Caron et al. 2021, DINO, arXiv:2104.14294, section 4.2.2; Chen et al. 2024, UNI,
        arXiv:2308.15474 (maps of the last block at 448 to 1,344 px).
    """
    attention = _attention_of(model, block)
    seen: list[tuple[Tensor, Sequence[SequenceShape]]] = []

    def note(_: nn.Module, given: tuple[Any, ...]) -> None:
        seen.append((given[0], given[1]))

    hook = attention.register_forward_pre_hook(note)
    try:
        with torch.inference_mode():
            model.embed(image_B3HW)
    finally:
        hook.remove()
    with torch.inference_mode():
        share_BHS = _class_shares(attention, *seen[0])
    first_patch = 1 + model.n_registers
    rows, columns = (edge // model.patch_px for edge in image_B3HW.shape[2:])
    return share_BHS[..., first_patch:].reshape(*share_BHS.shape[:2], rows, columns).clone()


def _attention_of(model: VisionTransformer, block: int) -> SelfAttention:
    if model.training:
        msg = (
            "attention_maps: needs a model in evaluation mode; got one in training, which drops "
            "images from a block. Call model.eval() first."
        )
        raise ValueError(msg)
    depth = len(model.blocks)
    if not -depth <= block < depth:
        msg = (
            f"attention_maps: block needs to be {-depth} to {depth - 1}; got {block}. "
            "The last block is -1."
        )
        raise ValueError(msg)
    attention = model.blocks[block].attn
    assert isinstance(attention, SelfAttention)
    return attention


def _class_shares(
    attention: SelfAttention, tokens_TD: Tensor, shapes: Sequence[SequenceShape]
) -> Tensor:
    """(B, H, S) float32 softmax of the class token's scores."""
    (qkv_BS3HE,) = unpack(
        attention.qkv(tokens_TD).unflatten(-1, (3, attention.n_heads, -1)), shapes
    )
    query_BHE = attention.q_norm(qkv_BS3HE[:, 0, 0]).float()
    key_BSHE = attention.k_norm(qkv_BS3HE[:, :, 1]).float()
    score_BHS = torch.einsum("bhe,bshe->bhs", query_BHE, key_BSHE)
    return (score_BHS / math.sqrt(query_BHE.shape[-1])).softmax(dim=-1)
