"""The iBOT objective: the student's masked patches agree with the teacher's unmasked ones.

Shape suffixes: M masked patches of the batch, P prototypes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from anlage.objectives.refusals import need_positive, need_same_shape


def ibot_loss(
    student_logits_MP: Tensor,
    targets_MP: Tensor,
    *,
    weight_M: Tensor,
    n_images: int,
    student_temperature: float = 0.1,
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:
    """Cross-entropy of masked patches with what the teacher sees in their place.

    With ``weight_M`` one over the masked patches of the patch's image, an image counts once
    however much of it is masked; images without a mask count as zero. Runs in float32 whatever
    autocast says. Without masked patches the loss is a zero through which gradients still flow,
    so that no rank waits for another.

        L = -1 / n_images * sum_m weight_m * sum_p target_mp * log softmax(s_m / t)_p

    Args:
        student_logits_MP: Logits of the masked patches, (M, P), any floating dtype; M may be 0.
        targets_MP: (M, P) teacher targets of the same patches, rows sum to 1; no gradient flows
            to them.
        weight_M: (M,) weight of each patch.
        n_images: Global views in the batch, masked or not, >= 1.
        student_temperature: Temperature t, > 0.
        reduction: ``mean`` over images, or ``none`` for the weighted value of each patch, whose
            sum over ``n_images`` is the loss.

    Returns:
        Scalar float32 loss, or (M,).

    Raises:
        ValueError: If the shapes do not fit, the temperature is not positive, or there is no
            image.

    Source: Zhou et al. 2021, iBOT, arXiv:2111.07832; weights of DINOv2.
    """
    need_positive("ibot_loss", "student_temperature", student_temperature)
    need_positive("ibot_loss", "n_images", n_images)
    need_same_shape("ibot_loss", ("student logits", "targets"), student_logits_MP, targets_MP)
    if weight_M.shape != student_logits_MP.shape[:1]:
        msg = (
            f"ibot_loss: needs one weight for each of {len(student_logits_MP)} masked patches; "
            f"got shape {tuple(weight_M.shape)}. Repeat 1 / (masked patches of an image) for each "
            "of them."
        )
        raise ValueError(msg)
    with torch.autocast(student_logits_MP.device.type, enabled=False):
        log_student_MP = (student_logits_MP.float() / student_temperature).log_softmax(dim=-1)
        agreement_M = (targets_MP.detach().float() * log_student_MP).sum(dim=-1)
        loss_M = -weight_M.float() * agreement_M
    return loss_M if reduction == "none" else loss_M.sum() / n_images
