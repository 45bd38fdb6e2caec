"""A learned position embedding at another image size.

Shape suffixes: N patches, D width.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def resize_positions(
    position_1ND: Tensor,
    *,
    from_grid: tuple[int, int],
    to_grid: tuple[int, int],
    antialias: bool = True,
) -> Tensor:
    """Resample a grid of position embeddings, bicubic.

    Args:
        position_1ND: (1, rows * columns, D) embeddings in row-major order.
        from_grid: Its rows and columns, patches.
        to_grid: Rows and columns that are wanted, patches.
        antialias: Low-pass before it shrinks.

    Returns:
        (1, rows * columns, D) of ``to_grid``, in the input's dtype; the input itself where the
        grids are equal.

    Source: equal to timm's ``resample_abs_pos_embed``, and to DINOv2 with
        ``interpolate_antialias=True, interpolate_offset=0``; without antialiasing to transformers'
        Dinov2.
    """
    if from_grid == to_grid:
        return position_1ND
    image_1DHW = position_1ND.float().reshape(1, *from_grid, -1).permute(0, 3, 1, 2)
    resized_1DHW = functional.interpolate(
        image_1DHW, size=to_grid, mode="bicubic", align_corners=False, antialias=antialias
    )
    return resized_1DHW.flatten(2).transpose(1, 2).to(position_1ND.dtype)
