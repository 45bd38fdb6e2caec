"""The DINO objective: the student's class token agrees with the teacher's on another view.

Shape suffixes: V student views, the global ones first; G global views; B tiles; P prototypes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from anlage.objectives.refusals import need_positive


def dino_loss(
    student_logits_VBP: Tensor,
    targets_GBP: Tensor,
    *,
    student_temperature: float = 0.1,
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:
    """Cross-entropy of every student view with every teacher view but its own.

    The first G student views are the teacher's views. All ``G * (V - 1)`` pairs (teacher view g,
    student view v != g) weigh the same; with 2 global and 8 local views those are the 18 terms of
    DINOv2. Runs in float32 whatever autocast says.

        L = -1 / (G (V-1)) * sum_{g, v != g} mean_b sum_p target_gbp * log softmax(s_vb / t)_p

    Args:
        student_logits_VBP: (V, B, P), V >= 2, any floating dtype.
        targets_GBP: (G, B, P) teacher targets, rows sum to 1, 1 <= G <= V; no gradient flows to
            them.
        student_temperature: Temperature t, > 0.
        reduction: ``mean`` over tiles, or ``none`` for one value a tile (their mean is the loss).

    Returns:
        Scalar float32 loss, or (B,). At least the mean entropy of the targets; ``log P`` where
        the student is uniform. A logit that is not finite makes its tile's loss not finite.

    Raises:
        ValueError: If the shapes do not fit, or the temperature is not positive.

    Source: Caron et al. 2021, DINO, arXiv:2104.14294; normalisation of DINOv2.
    """
    need_positive("dino_loss", "student_temperature", student_temperature)
    _check_views(student_logits_VBP, targets_GBP)
    n_views, n_global = len(student_logits_VBP), len(targets_GBP)
    with torch.autocast(student_logits_VBP.device.type, enabled=False):
        score_VBP = student_logits_VBP.float() / student_temperature
        target_GBP = targets_GBP.detach().float()
        summed_BP = target_GBP.sum(dim=0)
        agreement_B = score_VBP.new_zeros(score_VBP.shape[1])
        for view, log_student_BP in enumerate(score_VBP.log_softmax(dim=-1)):
            other_BP = summed_BP - target_GBP[view] if view < n_global else summed_BP
            agreement_B = agreement_B + (other_BP * log_student_BP).sum(dim=-1)
        loss_B = -agreement_B / (n_global * (n_views - 1))
    return loss_B if reduction == "none" else loss_B.mean()


def _check_views(student_logits_VBP: Tensor, targets_GBP: Tensor) -> None:
    fits = (
        student_logits_VBP.ndim == targets_GBP.ndim == 3
        and student_logits_VBP.shape[1:] == targets_GBP.shape[1:]
        and 1 <= len(targets_GBP) <= len(student_logits_VBP)
        and len(student_logits_VBP) >= 2
        and student_logits_VBP.shape[1] >= 1
    )
    if not fits:
        msg = (
            "dino_loss: needs (V, B, P) student logits and (G, B, P) targets with V >= 2, "
            f"1 <= G <= V and B >= 1; got {tuple(student_logits_VBP.shape)} and "
            f"{tuple(targets_GBP.shape)}. Stack the global views first, then the local ones."
        )
        raise ValueError(msg)
