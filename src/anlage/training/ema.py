"""The teacher as a moving average of the student."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anlage.training.parallel import own_shards


@torch.no_grad()
def update_teacher(
    teacher: nn.Module, student: nn.Module, *, momentum: float, sound: Tensor | None = None
) -> None:
    """Move every parameter of the teacher towards the student's, in place, on this rank's shards.

        teacher <- momentum * teacher + (1 - momentum) * student

    Args:
        teacher: The averaged network; its parameters need no gradient.
        student: The trained network, with the same parameters in the same order.
        momentum: 0 copies the student, 1 keeps the teacher.
        sound: Scalar on the device; where it is 0 the teacher keeps its values, without anybody
            waiting for the device. None for 1.
    """
    old, new = own_shards(teacher.parameters()), own_shards(student.parameters())
    if sound is None:
        torch._foreach_lerp_(old, new, 1.0 - momentum)
    else:
        torch._foreach_lerp_(old, new, [sound * (1.0 - momentum)] * len(old))
