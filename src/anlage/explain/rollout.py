"""Attention rollout: how much of each patch reaches the class token through all layers.

Shape suffixes: B images, 3 channels, H heads, S tokens of an image, C of them in a chunk, K those
with a share, N patches, E width of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from anlage.explain.noted_pass import NotedAttention, NotedPass, noted_pass
from anlage.models.vit import VisionTransformer

RESIDUAL = 0.5
CHUNK = 2**24  # numbers of attention at a time: 64 MiB


def attention_rollout(model: VisionTransformer, image_B3HW: Tensor) -> Tensor:
    """The class token's row of the product of all layers' attention, over the patches.

        e_cls^T  A'_L A'_{L-1} ... A'_1,   A'_l = 0.5 I + 0.5 mean over heads of A_l

    The row is multiplied through from the last layer down, a chunk of a layer's attention at a
    time: beside the noted inputs of the layers (L * B * S * D numbers) no memory grows with S * S.

    Args:
        model: The transformer, in evaluation mode.
        image_B3HW: (B, 3, height, width) normalised images on the model's device, edges multiples
            of the patch.

    Returns:
        (B, rows, columns) float32 shares, on the model's device. Class and register tokens keep
        theirs, so a map sums to less than 1.

    Raises:
        ValueError: If the model is in training mode or the images do not fit it.

    Source: Abnar & Zuidema 2020, Quantifying attention flow in transformers, arXiv:2005.00928,
        section 3 (rollout; heads averaged, residual connection as half an identity).
    """
    blocks = range(len(model.blocks))
    noted = noted_pass(model, image_B3HW, blocks=blocks, who="attention_rollout")
    return rollout_map(noted, n_registers=model.n_registers)


def rollout_map(noted: NotedPass, *, n_registers: int) -> Tensor:
    """Attention rollout of a pass that noted every block: (B, rows, columns) float32.

    Args:
        noted: A pass with the attention of all blocks, first to last.
        n_registers: Register tokens between class and patches.
    """
    tokens_BSD = noted.layers[0].tokens_BSD
    share_BS = torch.zeros(tokens_BSD.shape[:2], device=tokens_BSD.device)
    share_BS[:, 0] = 1
    for layer in reversed(noted.layers):
        share_BS = RESIDUAL * share_BS + (1 - RESIDUAL) * _through(share_BS, layer)
    return share_BS[:, 1 + n_registers :].reshape(-1, *noted.grid)


def _through(share_BS: Tensor, layer: NotedAttention) -> Tensor:
    """``share @ mean over heads of attention``, image by image."""
    query_BHSE, key_BHSE = layer.query_and_key()
    n_heads, n_tokens, width = query_BHSE.shape[1:]
    step = max(CHUNK // (n_heads * n_tokens), 1)  # rows of attention at a time
    passed_BS = torch.zeros_like(share_BS)
    for image in range(len(share_BS)):
        key_HES = key_BHSE[image].transpose(1, 2) / math.sqrt(width)
        for index_C in torch.split(share_BS[image].nonzero()[:, 0], step):
            attention_HCS = (query_BHSE[image][:, index_C] @ key_HES).softmax(dim=-1)
            share_C = share_BS[image, index_C] / n_heads
            passed_BS[image] += torch.einsum("c,hcs->s", share_C, attention_HCS)
    return passed_BS
