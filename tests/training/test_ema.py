"""The teacher's moving average against its formula."""

from __future__ import annotations

import torch
from torch import nn

from anlage.training.ema import update_teacher


def test_average_equals_the_formula() -> None:
    student, teacher = nn.Linear(3, 2), nn.Linear(3, 2)
    expected = [
        0.9 * t.detach() + 0.1 * s.detach()
        for t, s in zip(teacher.parameters(), student.parameters(), strict=True)
    ]
    update_teacher(teacher, student, momentum=0.9)
    for mine, theirs in zip(teacher.parameters(), expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_momentum_one_keeps_and_zero_copies() -> None:
    student, teacher = nn.Linear(3, 2), nn.Linear(3, 2)
    before = teacher.weight.detach().clone()
    update_teacher(teacher, student, momentum=1.0)
    assert torch.equal(teacher.weight, before)
    update_teacher(teacher, student, momentum=0.0)
    torch.testing.assert_close(teacher.weight, student.weight)


def test_average_changes_no_student_and_needs_no_gradient() -> None:
    student, teacher = nn.Linear(3, 2), nn.Linear(3, 2)
    before = student.weight.detach().clone()
    update_teacher(teacher, student, momentum=0.5)
    assert torch.equal(student.weight, before)
    assert teacher.weight.grad_fn is None
