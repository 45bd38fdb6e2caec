"""Crop, flip and resize as two matrix products with antialiased bicubic weights.

Shape suffixes: B tiles, S source edge, O output edge, T filter taps, K kernel taps, C channels.
"""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor

CUBIC_A = -0.5  # Keys' constant of antialiased bicubic filters (PIL, torch antialias=True)


def crop_weights(
    start_B: Tensor, length_B: Tensor, flipped_B: Tensor, *, source_px: int, out_px: int
) -> Tensor:
    """Weights that cut one axis of each tile to its crop and resize it, flipped or not.

    Row o of a matrix says how output pixel o is mixed from source pixels; rows sum to 1 and are 0
    outside the crop, as if the crop had been cut out first. Shrinking widens the filter
    (antialiasing), enlarging does not.

    Args:
        start_B: (B,) int64, first source pixel of the crop.
        length_B: (B,) int64, source pixels of the crop, >= 1, ``start + length <= source_px``.
        flipped_B: (B,) bool, whether the output runs backwards.
        source_px: Edge of the tile.
        out_px: Edge of the view.

    Returns:
        (B, O, S) float32 weights on the device of ``start_B``.

    Source: the definition of ``torch.nn.functional.interpolate(mode="bicubic", antialias=True)``.
    """
    device = start_B.device
    n_taps = 2 * ceil(2 * max(source_px / out_px, 1.0)) + 1
    scale_B11 = (length_B.float() / out_px)[:, None, None]
    stretch_B11 = scale_B11.clamp(min=1.0)
    out_BO = torch.arange(out_px, device=device).expand(len(start_B), -1)
    out_BO = torch.where(flipped_B[:, None], out_px - 1 - out_BO, out_BO)
    center_BO1 = scale_B11 * (out_BO[:, :, None] + 0.5)
    first_BO1 = (center_BO1 - 2 * stretch_B11 + 0.5).floor().clamp(min=0)
    last_BO1 = (center_BO1 + 2 * stretch_B11 + 0.5).floor()
    last_BO1 = torch.minimum(last_BO1, length_B[:, None, None].float())
    position_BOT = first_BO1 + torch.arange(n_taps, device=device)
    weight_BOT = _cubic((position_BOT - center_BO1 + 0.5) / stretch_B11)
    weight_BOT = weight_BOT * (position_BOT < last_BO1)
    weight_BOT = weight_BOT / weight_BOT.sum(-1, keepdim=True)
    index_BOT = (position_BOT.long() + start_B[:, None, None]).clamp(max=source_px - 1)
    dense_BOS = torch.zeros(len(start_B), out_px, source_px, device=device)
    return dense_BOS.scatter_add_(2, index_BOT, weight_BOT)


def _cubic(x: Tensor) -> Tensor:
    x = x.abs()
    near = ((CUBIC_A + 2) * x - (CUBIC_A + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * CUBIC_A
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def blur_weights(sigma_B: Tensor, *, length_px: int, kernel_px: int) -> Tensor:
    """Weights that blur one axis with a Gaussian, reflecting at the edges.

    Args:
        sigma_B: (B,) standard deviations in output pixels, > 0.
        length_px: Length of the axis, more than half a kernel.
        kernel_px: Odd number of taps.

    Returns:
        (B, O, O) float32 weights, rows sum to 1.

    Source: the definition of ``torchvision.transforms.v2.functional.gaussian_blur``.
    """
    half = kernel_px // 2
    offset_K = torch.arange(-half, half + 1, device=sigma_B.device)
    kernel_BK = torch.exp(-0.5 * (offset_K / sigma_B.float()[:, None]) ** 2)
    kernel_BK = kernel_BK / kernel_BK.sum(-1, keepdim=True)
    index_OK = (torch.arange(length_px, device=sigma_B.device)[:, None] + offset_K).abs()
    index_OK = (length_px - 1) - (length_px - 1 - index_OK).abs()
    shape_BOK = (len(sigma_B), length_px, kernel_px)
    dense_BOO = torch.zeros(len(sigma_B), length_px, length_px, device=sigma_B.device)
    return dense_BOO.scatter_add_(
        2, index_OK.expand(shape_BOK), kernel_BK[:, None, :].expand(shape_BOK)
    )


def apply_weights(rows_BSCS: Tensor, down_BOS: Tensor, across_BOS: Tensor) -> Tensor:
    """Mix rows by ``down`` and columns by ``across``.

    Args:
        rows_BSCS: (B, S, C, S) float32 tiles, rows first so that both products are plain matrices.
        down_BOS: (B, O, S) weights of the rows.
        across_BOS: (B, P, S) weights of the columns.

    Returns:
        (B, C, O, P) float32, a view that is not contiguous.
    """
    return _mix_rows(down_BOS, _mix_columns(rows_BSCS, across_BOS))


def resize_bytes(rows_BSCS: Tensor, down_BOS: Tensor, across_BOS: Tensor) -> Tensor:
    """``apply_weights`` with a byte after each axis, as PIL and torch resize bytes.

    Args:
        rows_BSCS: (B, S, C, S) float32 tiles, whole numbers 0 to 255.
        down_BOS: (B, O, S) weights of the rows.
        across_BOS: (B, P, S) weights of the columns.

    Returns:
        (B, C, O, P) float32, whole numbers 0 to 255, a view that is not contiguous.
    """
    wide_BSCP = _mix_columns(rows_BSCS, across_BOS).round_().clamp_(0, 255)
    return _mix_rows(down_BOS, wide_BSCP).round_().clamp_(0, 255)


def _mix_columns(rows_BSCS: Tensor, across_BPS: Tensor) -> Tensor:
    n, rows, channels, columns = rows_BSCS.shape
    wide = torch.bmm(rows_BSCS.reshape(n, rows * channels, columns), across_BPS.mT)
    return wide.view(n, rows, channels, -1)


def _mix_rows(down_BOS: Tensor, wide_BSCP: Tensor) -> Tensor:
    n, rows, channels, _ = wide_BSCP.shape
    tall = torch.bmm(down_BOS, wide_BSCP.reshape(n, rows, -1))
    return tall.view(n, down_BOS.shape[1], channels, -1).permute(0, 2, 1, 3)
