"""The DINO objective against double loops, known values, bounds and 50 steps of descent."""

import math

import numpy as np
import pytest
import torch

from anlage.objectives import dino
from reference.losses import slow_dino_loss
from reference.whole_logits import dino_loss, targets_of


def draw(n_views: int, n_global: int, n_tiles: int = 5, n_prototypes: int = 7, scale: float = 1.0):
    generator = torch.Generator().manual_seed(n_views * 10 + n_global)
    student = scale * torch.randn(n_views, n_tiles, n_prototypes, generator=generator)
    teacher = scale * torch.randn(n_global, n_tiles, n_prototypes, generator=generator)
    return student, teacher.softmax(-1)


@pytest.mark.parametrize(("n_views", "n_global"), [(2, 2), (10, 2), (2, 1), (3, 3), (6, 2)])
def test_equals_the_double_loop(n_views: int, n_global: int) -> None:
    student, targets = draw(n_views, n_global)
    slow = slow_dino_loss(student.double().numpy(), targets.double().numpy(), 0.1)
    assert dino_loss(student, targets).item() == pytest.approx(slow, rel=1e-6)


def test_per_tile_values_average_to_the_loss_and_are_each_tile_alone() -> None:
    student, targets = draw(4, 2)
    per_tile = dino_loss(student, targets, reduction="none")
    assert per_tile.shape == (5,)
    assert per_tile.mean().item() == pytest.approx(dino_loss(student, targets).item(), rel=1e-6)
    alone = dino_loss(student[:, 3:4], targets[:, 3:4])
    assert per_tile[3].item() == pytest.approx(alone.item(), rel=1e-6)


def test_a_uniform_student_costs_log_p_and_so_does_uniform_everything() -> None:
    _, targets = draw(4, 2)
    assert dino_loss(torch.zeros(4, 5, 7), targets).item() == pytest.approx(math.log(7), rel=1e-6)


def test_bounded_by_the_entropy_of_the_targets_and_reached_when_student_agrees() -> None:
    student, targets = draw(4, 2)
    same = targets[:1].expand(2, -1, -1)
    entropy = torch.special.entr(same).sum(-1).mean().item()
    assert dino_loss(student, same).item() > entropy
    agreeing = 0.1 * same[:1].log().expand(4, -1, -1)
    assert dino_loss(agreeing, same).item() == pytest.approx(entropy, rel=1e-5)


def test_a_view_is_never_compared_with_itself() -> None:
    student, targets = draw(2, 2)
    student = student.requires_grad_()
    agreeing = torch.stack([targets[0], (student[0].detach() / 0.1).softmax(-1)])
    loss = dino_loss(student, agreeing)
    (gradient,) = torch.autograd.grad(loss, student)
    assert gradient[0].abs().max() < 1e-6  # view 0 answers to teacher view 1 alone
    assert gradient[1].abs().max() > 0.1


def test_descent_brings_the_student_to_the_teacher() -> None:
    student, targets = draw(4, 2)
    targets = targets[:1].expand(2, -1, -1)
    student = student.requires_grad_()
    optimizer = torch.optim.Adam([student], lr=0.05)
    for _ in range(50):
        optimizer.zero_grad()
        dino_loss(student, targets).backward()
        optimizer.step()
    before, _ = draw(4, 2)
    gap = [((s / 0.1).softmax(-1) - targets[0]).abs().mean().item() for s in (before, student)]
    assert gap[1] < 0.2 * gap[0]


def test_gradient_is_probability_minus_target() -> None:
    student, targets = draw(6, 2)
    student = student.requires_grad_()
    dino_loss(student, targets).backward()
    probability = (student.detach() / 0.1).softmax(-1)
    for view in range(6):
        others = [g for g in range(2) if g != view]
        wanted = sum(probability[view] - targets[g] for g in others) / 0.1 / (2 * 5) / 5
        np.testing.assert_allclose(student.grad[view], wanted, atol=1e-6)


def test_no_gradient_reaches_the_teacher() -> None:
    student, targets = draw(4, 2)
    teacher = targets.log().requires_grad_()
    made = targets_of(targets)
    made.scores.bottleneck_GBE = teacher
    loss, _ = dino.dino_loss(student.requires_grad_(), torch.eye(7), made)
    loss.backward()
    assert teacher.grad is None


def test_runs_in_float32_under_autocast() -> None:
    student, targets = draw(4, 2)
    student = student.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = dino_loss(student, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(dino_loss(student.float(), targets).item(), rel=1e-6)


def test_extreme_logits_stay_finite() -> None:
    student, targets = draw(4, 2, scale=1e4)
    assert torch.isfinite(dino_loss(student, targets))


def test_a_nan_names_its_tile() -> None:
    student, targets = draw(4, 2)
    student[2, 3, 0] = torch.nan
    per_tile = dino_loss(student, targets, reduction="none")
    assert per_tile.isnan().nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize(
    ("student", "targets"),
    [((4, 5, 7), (2, 5, 8)), ((4, 5, 7), (2, 4, 7)), ((1, 5, 7), (1, 5, 7)), ((2, 5, 7), (3, 5, 7)),
     ((4, 0, 7), (2, 0, 7)), ((4, 7), (2, 7))],
)  # fmt: skip
def test_refuses_views_that_do_not_fit(student: tuple, targets: tuple) -> None:
    rule = "Stack the global views|Take both from|needs n_tiles > 0"
    with pytest.raises(ValueError, match=rule):
        dino_loss(torch.zeros(student), torch.ones(targets))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_refuses_a_temperature_that_is_not_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match="needs student_temperature > 0"):
        dino_loss(*draw(2, 2), student_temperature=temperature)
