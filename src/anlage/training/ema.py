"""The teacher as a moving average of the student."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, *, momentum: float) -> None:
    """Move every parameter of the teacher towards the student's, in place, in one fused pass.

        teacher <- momentum * teacher + (1 - momentum) * student

    Args:
        teacher: The averaged network; its parameters need no gradient.
        student: The trained network, with the same parameters in the same order.
        momentum: 0 copies the student, 1 keeps the teacher.
    """
    old: list[torch.Tensor] = [*teacher.parameters()]
    new: list[torch.Tensor] = [*student.parameters()]
    torch._foreach_lerp_(old, new, 1.0 - momentum)
