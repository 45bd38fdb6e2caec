"""Distillation without heads: the student says the teacher's embeddings themselves.

Shape suffixes: B tiles, N patch tokens, D the teacher's width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional


def feature_distance(
    student_BD: Tensor, teacher_BD: Tensor, *, reduction: Literal["mean", "none"] = "mean"
) -> Tensor:
    """One minus the cosine between predicted and true embeddings.

    The same for class tokens (B, D) and patch tokens (B, N, D). Lengths do not count: after the
    teacher's last LayerNorm a few channels carry most of the length, and a squared or absolute
    error would learn those first. Runs in float32 whatever autocast says.

        L = mean over rows of (1 - s . t),   |s| = |t| = 1

    Args:
        student_BD: What the student predicts, (B, ..., D), any floating dtype, not normalised,
            projected to the teacher's width.
        teacher_BD: The teacher's tokens, of the same shape; no gradient flows to them. A row of
            zeros has no direction: it costs 1 and pulls nowhere, so a teacher gone blank shows
            as a loss that stays at 1.
        reduction: ``mean`` over tiles, or ``none`` for one value a tile.

    Returns:
        Scalar float32 loss, or (B,); from 0 (same directions) to 2 (opposite ones).

    Raises:
        ValueError: If the shapes differ, or there is no row.

    Source: Ranzinger et al. 2024, AM-RADIO, arXiv:2312.06709, loss of the summary token. Differs
        for patch tokens, where AM-RADIO mixes in a tenth of smooth L1 to keep lengths.
    """
    if student_BD.ndim < 2 or student_BD.shape != teacher_BD.shape or not student_BD.numel():
        msg = (
            "feature_distance: needs student and teacher tokens of one shape (B, ..., D) with "
            f"B >= 1; got {tuple(student_BD.shape)} and {tuple(teacher_BD.shape)}. Project the "
            "student to the teacher's width, and bring patch grids together with match_grid."
        )
        raise ValueError(msg)
    with torch.autocast(student_BD.device.type, enabled=False):
        student = functional.normalize(student_BD.float(), dim=-1)
        teacher = functional.normalize(teacher_BD.detach().float(), dim=-1)
        cosine_BN = (student * teacher).sum(dim=-1).reshape(len(student), -1)
        distance_B = 1 - cosine_BN.mean(dim=1)
    return distance_B if reduction == "none" else distance_B.mean()


def match_grid(
    tokens_BND: Tensor, *, from_grid: tuple[int, int], to_grid: tuple[int, int]
) -> Tensor:
    """Patch tokens resampled to another grid over the same image, bilinear.

    For a teacher of patch 14 and a student of patch 16. Each new token mixes the up to four old
    ones around its centre, so a grid should shrink by no more than two. Runs in float32 whatever
    autocast says.

    Args:
        tokens_BND: (B, rows * columns, D) tokens in row-major order, any floating dtype.
        from_grid: Their rows and columns, patches.
        to_grid: Rows and columns that are wanted, patches.

    Returns:
        (B, rows * columns, D) float32 tokens of ``to_grid``; where the grids are equal, the
        tokens as they are.

    Raises:
        ValueError: If there are not rows * columns tokens, or a grid has no row or column.
    """
    n_tokens = from_grid[0] * from_grid[1]
    if tokens_BND.ndim != 3 or tokens_BND.shape[1] != n_tokens or min(*from_grid, *to_grid) < 1:
        msg = (
            f"match_grid: needs (B, N, D) tokens with N = {from_grid[0]} x {from_grid[1]} and "
            f"grids of one or more rows and columns; got shape {tuple(tokens_BND.shape)}, "
            f"from_grid={from_grid}, to_grid={to_grid}. Leave out class and register tokens; a "
            "grid is the image's edge over the patch's."
        )
        raise ValueError(msg)
    with torch.autocast(tokens_BND.device.type, enabled=False):
        tokens_BND = tokens_BND.float()
        if from_grid == to_grid:
            return tokens_BND
        image_BDHW = tokens_BND.mT.reshape(len(tokens_BND), -1, *from_grid)
        matched_BDHW = functional.interpolate(
            image_BDHW, size=to_grid, mode="bilinear", align_corners=False
        )
    return matched_BDHW.flatten(2).mT
