"""The masked autoencoder's loss on tiles of slides: predict the embeddings of hidden tiles.

Shape suffixes: M masked tiles of all bags, D width of a tile embedding, B bags.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

EPSILON = 1e-6  # added to the variance, as in MAE


def standardised(embedding_TD: Tensor) -> Tensor:
    """Tile embeddings, each brought to mean 0 and variance 1 over its own values.

    The target of the masked autoencoder: MAE's normalised pixels with a tile embedding in place of
    a patch. Runs in float32 whatever autocast says.

    Args:
        embedding_TD: (T, D) tile embeddings, any floating dtype.

    Returns:
        (T, D) float32. A constant embedding becomes zeros.

    Source: He et al. 2022, Masked autoencoders are scalable vision learners, arXiv:2111.06377,
    section 4.1 (normalised targets), whose code divides by D - 1; here D.
    """
    exact_TD = embedding_TD.float()
    variance_T, mean_T = torch.var_mean(exact_TD, dim=-1, correction=0, keepdim=True)
    return (exact_TD - mean_T) / (variance_T + EPSILON).sqrt()


def masked_tile_error(predicted_MD: Tensor, target_MD: Tensor, n_masked: Sequence[int]) -> Tensor:
    """Mean squared error of the hidden tiles of each bag.

    A bag's error is the mean over its hidden tiles and their values; the mean over bags, each of
    the same weight however many tiles it has, is the loss.

    Args:
        predicted_MD: (M, D) predictions of hidden tiles, bag after bag, any floating dtype.
        target_MD: (M, D) what they should be.
        n_masked: Hidden tiles of each bag, each at least 1; their sum is M.

    Returns:
        (B,) float32 errors, at least 0.

    Raises:
        ValueError: If the shapes or the numbers do not fit each other.

    Source: He et al. 2022, MAE, arXiv:2111.06377, section 3: mean squared error on masked patches
    alone. The mean over bags is ours.
    """
    fits = predicted_MD.ndim == 2 and predicted_MD.shape == target_MD.shape
    if not fits or sum(n_masked) != len(predicted_MD) or min(n_masked, default=0) < 1:
        msg = (
            "masked_tile_error: needs (M, D) predictions and targets, and 1 or more hidden tiles "
            f"of each bag, M in all; got {tuple(predicted_MD.shape)}, {tuple(target_MD.shape)} and "
            f"{list(n_masked)[:8]}. Leave out bags of one tile."
        )
        raise ValueError(msg)
    with torch.autocast(predicted_MD.device.type, enabled=False):
        error_M = (predicted_MD.float() - target_MD.float()).square().mean(dim=1)
    return torch.stack([bag_m.mean() for bag_m in torch.split(error_M, list(n_masked))])
