"""The iBOT objective against a double loop, known values and 50 steps of descent."""

import math

import pytest
import torch

from anlage.objectives import ibot
from reference.losses import slow_ibot_loss
from reference.whole_logits import ibot_loss, targets_of

OWNER = [0, 0, 0, 2, 2, 3]  # image of each masked patch; image 1 is not masked


def draw() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    student = torch.randn(6, 9, generator=generator)
    targets = torch.randn(6, 9, generator=generator).softmax(-1)
    weight = torch.tensor([1 / OWNER.count(owner) for owner in OWNER])
    return student, targets, weight


def test_equals_the_double_loop() -> None:
    student, targets, weight = draw()
    slow = slow_ibot_loss(
        student.double().numpy(), targets.double().numpy(), OWNER, n_images=4, t=0.1
    )
    assert ibot_loss(student, targets, weight_M=weight, n_images=4).item() == pytest.approx(
        slow, rel=1e-6
    )


def per_patch_of(student: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor):
    return ibot.ibot_loss(
        student, torch.eye(9), targets_of(targets[None]), weight_M=weight, n_images=4
    )


def test_per_patch_values_weigh_up_to_the_loss() -> None:
    student, targets, weight = draw()
    loss, per_patch = per_patch_of(student, targets, weight)
    assert per_patch.shape == (6,)
    assert (weight * per_patch).sum().item() / 4 == pytest.approx(loss.item(), rel=1e-6)


def test_a_uniform_student_costs_log_p_for_each_masked_image() -> None:
    _, targets, weight = draw()
    loss = ibot_loss(torch.zeros(6, 9), targets, weight_M=weight, n_images=4)
    assert loss.item() == pytest.approx(math.log(9) * 3 / 4, rel=1e-6)


def test_at_least_the_weighted_entropy_of_the_targets() -> None:
    student, targets, weight = draw()
    floor = (weight * torch.special.entr(targets).sum(-1)).sum().item() / 4
    assert ibot_loss(student, targets, weight_M=weight, n_images=4).item() > floor
    agreeing = 0.1 * targets.log()
    loss = ibot_loss(agreeing, targets, weight_M=weight, n_images=4)
    assert loss.item() == pytest.approx(floor, rel=1e-5)


def test_an_image_counts_once_however_much_is_masked() -> None:
    student, targets, _ = draw()
    few = ibot_loss(student[:1], targets[:1], weight_M=torch.ones(1), n_images=1)
    many = ibot_loss(
        student[:1].repeat(5, 1),
        targets[:1].repeat(5, 1),
        weight_M=torch.full((5,), 0.2),
        n_images=1,
    )
    assert many.item() == pytest.approx(few.item(), rel=1e-6)


def test_nothing_masked_is_a_zero_with_a_graph() -> None:
    weight = torch.ones(4, 9, requires_grad=True)
    student = torch.zeros(0, 4) @ weight
    loss = ibot_loss(student, torch.zeros(0, 9), weight_M=torch.zeros(0), n_images=4)
    loss.backward()
    assert loss.item() == 0
    assert weight.grad is not None
    assert weight.grad.abs().max() == 0


def test_descent_brings_the_student_to_the_teacher() -> None:
    student, targets, weight = draw()
    before = ((student / 0.1).softmax(-1) - targets).abs().mean().item()
    student = student.requires_grad_()
    optimizer = torch.optim.Adam([student], lr=0.05)
    for _ in range(50):
        optimizer.zero_grad()
        ibot_loss(student, targets, weight_M=weight, n_images=4).backward()
        optimizer.step()
    assert ((student / 0.1).softmax(-1) - targets).abs().mean().item() < 0.4 * before


def test_runs_in_float32_under_autocast() -> None:
    student, targets, weight = draw()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = ibot_loss(student.bfloat16(), targets, weight_M=weight, n_images=4)
    rounded = ibot_loss(student.bfloat16().float(), targets, weight_M=weight, n_images=4)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(rounded.item(), rel=1e-6)


def test_a_nan_names_its_patch() -> None:
    student, targets, weight = draw()
    student[4, 1] = torch.nan
    _, per_patch = per_patch_of(student, targets, weight)
    assert per_patch.isnan().nonzero().flatten().tolist() == [4]


def test_refusals_say_what_to_do() -> None:
    student, targets, weight = draw()
    with pytest.raises(ValueError, match="Take both from the same views"):
        ibot_loss(student[:5], targets, weight_M=weight[:5], n_images=4)
    with pytest.raises(ValueError, match="Repeat 1 / "):
        ibot_loss(student, targets, weight_M=weight[:5], n_images=4)
    with pytest.raises(ValueError, match="needs n_images > 0; got 0"):
        ibot_loss(student, targets, weight_M=weight, n_images=0)
    with pytest.raises(ValueError, match="needs student_temperature > 0"):
        ibot_loss(student, targets, weight_M=weight, n_images=4, student_temperature=0.0)
