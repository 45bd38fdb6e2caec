"""Gram anchoring against a double loop, known values, what it must not see, and descent."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anlage.objectives import gram
from anlage.objectives.gram import gram_loss
from reference.losses import slow_gram_loss


def draw(seed: int = 1, *, width: int = 6) -> Tensor:
    return torch.randn(5, 7, width, generator=torch.Generator().manual_seed(seed))


def test_equals_the_double_loop() -> None:
    student, teacher = draw(1), draw(2)
    slow = slow_gram_loss(student.numpy(), teacher.numpy())
    assert gram_loss(student, teacher, reduction="none").tolist() == pytest.approx(slow, rel=1e-5)
    assert gram_loss(student, teacher).item() == pytest.approx(sum(slow) / 5, rel=1e-5)


def test_known_value_by_hand() -> None:
    """Cosines of the student [[1, 0], [0, 1]], of the teacher [[1, .6], [.6, 1]]: 2 * .36 / 4."""
    student = torch.tensor([[[2.0, 0.0], [0.0, 5.0]]])
    teacher = torch.tensor([[[1.0, 0.0], [3.0, 4.0]]])
    assert gram_loss(student, teacher).item() == pytest.approx(0.18, rel=1e-6)


def test_the_largest_value_is_below_four() -> None:
    """Alternating patches against equal ones: half of the cosines are off by two."""
    signs = torch.tensor([1.0, -1.0]).repeat(8)[None, :, None]
    assert gram_loss(signs, torch.ones(1, 16, 1)).item() == pytest.approx(2.0)


def test_zero_at_equality_with_no_gradient() -> None:
    student = draw().requires_grad_()
    loss = gram_loss(student, student.detach().clone())
    loss.backward()
    assert loss.item() == 0
    assert student.grad.abs().max() == 0


def test_a_rotated_student_costs_nothing() -> None:
    rotation = torch.linalg.qr(draw(3)[0, :6]).Q
    assert gram_loss(draw() @ rotation, draw()).item() < 1e-12
    assert gram_loss(draw() @ draw(3)[0, :6], draw()).item() > 1e-3  # any other map does


def test_length_of_the_tokens_does_not_matter() -> None:
    stretch = torch.linspace(0.1, 50, 35).view(5, 7, 1)
    expected = gram_loss(draw(1), draw(2))
    torch.testing.assert_close(gram_loss(stretch * draw(1), draw(2)), expected)
    torch.testing.assert_close(gram_loss(draw(1), stretch * draw(2)), expected)


def test_widths_may_differ() -> None:
    wider = torch.cat([draw(), torch.zeros(5, 7, 3)], dim=-1)
    assert gram_loss(draw(), wider).item() < 1e-12


def test_images_do_not_see_each_other() -> None:
    changed = draw(1)
    changed[3] = draw(4)[3]
    before, after = (gram_loss(s, draw(2), reduction="none") for s in (draw(1), changed))
    assert (before != after).tolist() == [False, False, False, True, False]


def test_gradient_flows_to_the_student_alone() -> None:
    student, teacher = draw(1).requires_grad_(), draw(2).requires_grad_()
    gram_loss(student, teacher).backward()
    assert student.grad.abs().max() > 0
    assert teacher.grad is None


@pytest.mark.parametrize("images_at_once", [1, 2])
def test_chunks_change_neither_value_nor_gradient(
    monkeypatch: pytest.MonkeyPatch, images_at_once: int
) -> None:
    results = []
    for bound in (gram.LARGEST_GRAM, images_at_once * 49):
        monkeypatch.setattr(gram, "LARGEST_GRAM", bound)
        student = draw(1).requires_grad_()
        values = gram_loss(student, draw(2), reduction="none")
        (values * torch.arange(1.0, 6.0)).sum().backward()
        results.append((values.detach(), student.grad))
    torch.testing.assert_close(results[0], results[1])


def test_no_matrix_is_kept_for_the_backward_pass() -> None:
    saved: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    student = torch.randn(4, 50, 3, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        gram_loss(student, torch.randn(4, 50, 3))
    assert max(saved) == 4 * 50 * 3


def test_no_matrix_is_larger_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    product = torch.baddbmm

    def measured(*args: Tensor, **settings: float) -> Tensor:
        sizes.append(product(*args, **settings).numel())
        return product(*args, **settings)

    monkeypatch.setattr(gram, "LARGEST_GRAM", 2 * 50 * 50 + 1)
    monkeypatch.setattr(torch, "baddbmm", measured)
    gram_loss(torch.randn(5, 50, 3), torch.randn(5, 50, 3))
    assert sizes == [2 * 50 * 50, 2 * 50 * 50, 50 * 50]


def test_descent_brings_the_likenesses_together() -> None:
    student = draw(1).requires_grad_()
    before = gram_loss(student, draw(2)).item()
    optimizer = torch.optim.Adam([student], lr=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        gram_loss(student, draw(2)).backward()
        optimizer.step()
    assert sum(slow_gram_loss(student.detach().numpy(), draw(2).numpy())) / 5 < 0.1 * before


def test_gradient_equals_finite_differences() -> None:
    direction, step = draw(7), 1e-2
    leaf = draw(1).requires_grad_()
    gram_loss(leaf, draw(2)).backward()
    above, below = (gram_loss(draw(1) + s * direction, draw(2)) for s in (step, -step))
    difference = (above - below).item() / (2 * step)
    assert (leaf.grad * direction).sum().item() == pytest.approx(difference, rel=2e-3)


def test_runs_in_float32_under_autocast() -> None:
    student, teacher = draw(1).bfloat16(), draw(2).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = gram_loss(student, teacher)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, gram_loss(student.float(), teacher.float()))


def test_a_nan_names_its_image() -> None:
    student = draw()
    student[2, 4, 1] = torch.nan
    assert gram_loss(student, draw(2), reduction="none").isnan().nonzero().tolist() == [[2]]


@pytest.mark.parametrize(
    ("student", "teacher"),
    [((7, 6), (7, 6)), ((5, 7, 6), (5, 8, 6)), ((5, 7, 6), (4, 7, 6)), ((0, 7, 6), (0, 7, 6))],
)
def test_refuses_tokens_of_other_patches(
    student: tuple[int, ...], teacher: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="bring one grid to the other with match_grid"):
        gram_loss(torch.ones(student), torch.ones(teacher))
