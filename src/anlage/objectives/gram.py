"""Gram anchoring: the student's patches keep the likenesses that an earlier teacher saw.

Shape suffixes: B images, N patch tokens of an image, D width.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

LARGEST_GRAM = 2**25  # values of the (B, N, N) matrices of one chunk: 128 MiB in float32


def gram_loss(
    student_patches_BND: Tensor,
    gram_patches_BND: Tensor,
    *,
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:
    """Squared difference of two sets of cosines: between patches of one image, as each side sees.

    Only likenesses between patches are held still, not the patches: any rotation of the student's
    tokens costs nothing, and the two widths may differ. Images are taken in chunks whose (N, N)
    matrices hold at most 2^25 values each (one image at the least), and no matrix outlives its
    chunk: the forward pass keeps the gradient of the tokens instead. Runs in float32 whatever
    autocast says.

        L = mean_b 1/N^2 * sum_ij (s_bi . s_bj - g_bi . g_bj)^2,   |s| = |g| = 1
        dL_b / ds_bi = 4/N^2 * sum_j (s_bi . s_bj - g_bi . g_bj) s_bj

    Args:
        student_patches_BND: Student patch tokens, (B, N, D), any floating dtype, not normalised.
            A token of zeros has cosine 0 with every token.
        gram_patches_BND: The Gram teacher's tokens of the same patches, (B, N, D'); no gradient
            flows to them.
        reduction: ``mean`` over images, or ``none`` for one value an image.

    Returns:
        Scalar float32 loss, or (B,); from 0 (equal likenesses) to below 4.

    Raises:
        ValueError: If the tokens are not 3-D, or not of the same images and patches.

    Source: Siméoni et al. 2025, DINOv3, arXiv:2508.10104, section on Gram anchoring. The mean
        over the N^2 pairs makes the value independent of the grid.
    """
    _check_patches(student_patches_BND, gram_patches_BND)
    with torch.autocast(student_patches_BND.device.type, enabled=False):
        student_BND = functional.normalize(student_patches_BND.float(), dim=-1)
        gram_BND = functional.normalize(gram_patches_BND.detach().float(), dim=-1)
        loss_B: Tensor = _GramDifference.apply(student_BND, gram_BND)  # type: ignore[no-untyped-call]
    return loss_B if reduction == "none" else loss_B.mean()


class _GramDifference(torch.autograd.Function):
    """Mean squared difference of the two cosine matrices of each image, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, student_BND: Tensor, gram_BND: Tensor) -> Tensor:  # noqa: ANN401
        n_pairs = student_BND.shape[1] ** 2
        images_at_once = max(1, LARGEST_GRAM // n_pairs)
        losses, gradients = [], []
        for student, gram in zip(
            torch.split(student_BND, images_at_once),
            torch.split(gram_BND, images_at_once),
            strict=True,
        ):
            difference_BNN = torch.baddbmm(student @ student.mT, gram, gram.mT, alpha=-1)
            losses.append(difference_BNN.square().mean(dim=(1, 2)))
            if ctx.needs_input_grad[0]:
                gradients.append(4 / n_pairs * (difference_BNN @ student))
        if gradients:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above_B: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (gradient_BND,) = ctx.saved_tensors
        return above_B[:, None, None] * gradient_BND, None


def _check_patches(student_patches_BND: Tensor, gram_patches_BND: Tensor) -> None:
    fits = (
        student_patches_BND.ndim == gram_patches_BND.ndim == 3
        and student_patches_BND.shape[:2] == gram_patches_BND.shape[:2]
        and min(student_patches_BND.shape[:2]) >= 1
    )
    if not fits:
        msg = (
            "gram_loss: needs (B, N, D) patch tokens of the same images and patches; got shapes "
            f"{tuple(student_patches_BND.shape)} and {tuple(gram_patches_BND.shape)}. Leave out "
            "class and register tokens, and bring one grid to the other with match_grid."
        )
        raise ValueError(msg)
