"""Trained weights for another image size or another patch size.

Shape suffixes: N patches, D width, C channels, P patch edge, Q patch edge that is wanted.
"""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor
from torch.nn import functional

from anlage.models.layers.position_embedding import resize_positions


def adapt_position_grid(position_1ND: Tensor, *, to_grid: tuple[int, int]) -> Tensor:
    """Positions of a square grid at another grid, bicubic with antialiasing.

    Args:
        position_1ND: (1, N, D) embeddings of a square grid in row-major order, no class token.
        to_grid: Rows and columns that are wanted.

    Returns:
        (1, rows * columns, D); the input itself where the grid stays.

    Raises:
        ValueError: If N is no square.
    """
    edge = isqrt(position_1ND.shape[1])
    if edge**2 != position_1ND.shape[1]:
        msg = (
            "adapt_position_grid: needs the positions of a square grid; got "
            f"{position_1ND.shape[1]}. Take off those of class and register tokens first."
        )
        raise ValueError(msg)
    return resize_positions(position_1ND, from_grid=(edge, edge), to_grid=to_grid)


def adapt_patch_projection(weight_DCPP: Tensor, *, patch_px: int) -> Tensor:
    """The patch projection for patches of another edge: it answers to resized patches as before.

    With B the matrix that resizes a patch (bicubic, antialias), the new filter is
    ``pinv(B^T) w``: it minimises the expected ``(<w_new, B x> - <w, x>)^2`` over white patches x,
    and is exact where the patch grows.

    Args:
        weight_DCPP: (D, C, P, P) filters.
        patch_px: Edge Q that is wanted, pixels, >= 1.

    Returns:
        (D, C, Q, Q) filters in the input's dtype; the input itself where the edge stays.

    Raises:
        ValueError: If the filters are not square, or ``patch_px`` is below 1.

    Source: Beyer et al. 2023, FlexiViT, arXiv:2212.08013, section 3.4. Computed in float64.
    """
    edge = weight_DCPP.shape[-1]
    if weight_DCPP.ndim != 4 or weight_DCPP.shape[-2] != edge or patch_px < 1:
        msg = (
            "adapt_patch_projection: needs (D, C, P, P) filters and patch_px >= 1; got shape "
            f"{tuple(weight_DCPP.shape)}, patch_px={patch_px}. Pass patch_embed.proj.weight."
        )
        raise ValueError(msg)
    if edge == patch_px:
        return weight_DCPP
    unit = torch.eye(edge**2, dtype=torch.float64, device=weight_DCPP.device)
    resized = functional.interpolate(
        unit.reshape(-1, 1, edge, edge), size=(patch_px, patch_px), mode="bicubic", antialias=True
    )
    transposed_B = resized.flatten(1)  # (P * P, Q * Q): one resized unit patch a row
    filters: Tensor = weight_DCPP.double().flatten(2) @ torch.linalg.pinv(transposed_B).T
    return filters.reshape(*weight_DCPP.shape[:2], patch_px, patch_px).to(weight_DCPP.dtype)
