"""Where a transformer's class token looks: one map a head over the patches of an image.

Shape suffixes: B images, 3 channels, H heads, S tokens of an image, E width of a head; maps are
(B, H, rows, columns).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from anlage.explain.noted_pass import NotedAttention, noted_pass
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
    noted = noted_pass(model, image_B3HW, blocks=[block], who="attention_maps")
    share_BHN = class_attention(noted.layers[0])[..., 1 + model.n_registers :]
    return share_BHN.reshape(*share_BHN.shape[:2], *noted.grid)


def class_attention(layer: NotedAttention) -> Tensor:
    """The class token's row of a layer's attention: (B, H, S) float32, each row sums to 1."""
    query_BHSE, key_BHSE = layer.query_and_key()
    score_BHS = torch.einsum("bhe,bhse->bhs", query_BHSE[:, :, 0], key_BHSE)
    share_BHS = (score_BHS / math.sqrt(query_BHSE.shape[-1])).softmax(dim=-1)
    return share_BHS.clone()  # an ordinary tensor
