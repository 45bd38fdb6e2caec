"""The iBOT objective: the student's masked patches agree with the teacher's unmasked ones.

Shape suffixes: M masked patches of the batch, E bottleneck width, P prototypes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from anlage.objectives.prototypes import PrototypeTargets, prototype_cross_entropy
from anlage.objectives.refusals import need_positive


def ibot_loss(
    student_ME: Tensor,
    prototypes_PE: Tensor,
    targets: PrototypeTargets,
    *,
    weight_M: Tensor,
    n_images: int,
    student_temperature: float = 0.1,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of masked patches with what the teacher sees in their place.

    With ``weight_M`` one over the masked patches of the patch's image, an image counts once
    however much of it is masked; images without a mask count as zero. Runs in float32 whatever
    autocast says, its matrix products in ``dtype``. Without masked patches the loss is a zero
    through which gradients still flow, so that no rank waits for another.

        L = -1 / n_images * sum_m weight_m * sum_p target_mp * log softmax(s_m / t)_p

    Args:
        student_ME: Bottlenecks of the masked patches, (M, E); M may be 0.
        prototypes_PE: (P, E) prototypes of the student.
        targets: The teacher's for the same patches, as one view.
        weight_M: (M,) weight of each patch.
        n_images: Global views in the batch, masked or not, >= 1.
        student_temperature: Temperature t, > 0.
        dtype: Dtype of the matrix products; float32 if None.

    Returns:
        loss: Scalar float32.
        per_patch_M: (M,) value of each patch before its weight, detached.

    Raises:
        ValueError: If the shapes do not fit, the temperature is not positive, or there is no
            image.

    Source: Zhou et al. 2021, iBOT, arXiv:2111.07832; weights of DINOv2.
    """
    need_positive("ibot_loss", "n_images", n_images)
    if weight_M.shape != student_ME.shape[:1]:
        msg = (
            f"ibot_loss: needs one weight for each of {len(student_ME)} masked patches; "
            f"got shape {tuple(weight_M.shape)}. Repeat 1 / (masked patches of an image) for each "
            "of them."
        )
        raise ValueError(msg)
    return prototype_cross_entropy(
        student_ME[None],
        prototypes_PE,
        targets,
        pairs_VG=targets.bias_P.new_ones(1, 1),
        weight_B=weight_M / n_images,
        temperature=student_temperature,
        dtype=dtype,
    )
