"""Distillation without heads against a loop, known values and descent; grids against hats."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anlage.objectives.feature_distance import feature_distance, match_grid
from reference.losses import slow_feature_distance, slow_match_grid


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(5, 8), (5, 7, 8)], ids=["class", "patches"])
def test_equals_the_loop(shape: tuple[int, ...]) -> None:
    student, teacher = draw(*shape, seed=1), draw(*shape, seed=2)
    slow = slow_feature_distance(student.numpy(), teacher.numpy())
    per_tile = feature_distance(student, teacher, reduction="none")
    assert per_tile.tolist() == pytest.approx(slow, rel=1e-5)
    assert feature_distance(student, teacher).item() == pytest.approx(sum(slow) / 5, rel=1e-5)


def test_known_values_and_bounds() -> None:
    teacher = torch.tensor([[3.0, 4.0]])
    for student, expected in (([6.0, 8.0], 0.0), ([1.0, 0.0], 0.4), ([-4.0, 3.0], 1.0)):
        loss = feature_distance(torch.tensor([student]), teacher)
        assert loss.item() == pytest.approx(expected, abs=1e-6)
    assert feature_distance(-teacher, teacher).item() == pytest.approx(2.0)


def test_length_does_not_matter() -> None:
    stretch = torch.linspace(0.1, 50, 5)[:, None]
    expected = feature_distance(draw(5, 8), draw(5, 8, seed=2))
    torch.testing.assert_close(feature_distance(stretch * draw(5, 8), draw(5, 8, seed=2)), expected)


def test_a_blank_teacher_row_costs_one_and_pulls_nowhere() -> None:
    teacher = draw(4, 8, seed=2)
    teacher[1] = 0
    student = draw(4, 8).requires_grad_()
    per_tile = feature_distance(student, teacher, reduction="none")
    per_tile.sum().backward()
    assert per_tile[1].item() == 1
    assert student.grad[1].abs().max() == 0
    assert student.grad[0].abs().max() > 0


def test_gradient_flows_to_the_student_alone() -> None:
    student, teacher = draw(4, 8).requires_grad_(), draw(4, 8, seed=2).requires_grad_()
    feature_distance(student, teacher).backward()
    assert student.grad.abs().max() > 0
    assert teacher.grad is None


def test_descent_turns_the_student_to_the_teacher() -> None:
    student, teacher = draw(4, 3, 8).requires_grad_(), draw(4, 3, 8, seed=2)
    optimizer = torch.optim.Adam([student], lr=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        feature_distance(student, teacher).backward()
        optimizer.step()
    assert max(slow_feature_distance(student.detach().numpy(), teacher.numpy())) < 0.05


def test_runs_in_float32_under_autocast() -> None:
    student, teacher = draw(4, 8).bfloat16(), draw(4, 8, seed=2).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = feature_distance(student, teacher)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, feature_distance(student.float(), teacher.float()))


def test_a_nan_names_its_tile() -> None:
    student = draw(4, 3, 8)
    student[2, 1, 0] = torch.nan
    per_tile = feature_distance(student, draw(4, 3, 8, seed=2), reduction="none")
    assert per_tile.isnan().tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    ("student", "teacher"), [((4, 8), (4, 9)), ((4, 8), (3, 8)), ((8,), (8,)), ((0, 8), (0, 8))]
)
def test_refuses_rows_that_do_not_fit(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="Project the student to the teacher's width"):
        feature_distance(torch.ones(student), torch.ones(teacher))


@pytest.mark.parametrize("to_grid", [(7, 7), (14, 10), (4, 3), (1, 1), (8, 6)])
def test_grids_equal_the_loop_of_hats(to_grid: tuple[int, int]) -> None:
    tokens = draw(2, 48, 5)
    matched = match_grid(tokens, from_grid=(8, 6), to_grid=to_grid)
    slow = slow_match_grid(tokens.numpy(), (8, 6), to_grid)
    torch.testing.assert_close(matched.double(), torch.from_numpy(slow), rtol=1e-4, atol=1e-5)


def test_a_ramp_over_the_image_stays_the_same_ramp() -> None:
    """A token that says where its centre is still does so on the other grid (edges apart)."""
    centres = (torch.arange(16) + 0.5) / 16
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    tokens = torch.stack([y, x], dim=-1).view(1, 256, 2)
    matched = match_grid(tokens, from_grid=(16, 16), to_grid=(14, 14)).view(14, 14, 2)
    expected = (torch.arange(14) + 0.5) / 14
    torch.testing.assert_close(matched[5, 1:-1, 1], expected[1:-1])
    torch.testing.assert_close(matched[1:-1, 5, 0], expected[1:-1])


def test_half_a_grid_is_the_mean_of_four() -> None:
    tokens = draw(1, 16, 2)
    matched = match_grid(tokens, from_grid=(4, 4), to_grid=(2, 2))
    expected = tokens.view(2, 2, 2, 2, 2).mean(dim=(1, 3)).view(1, 4, 2)
    torch.testing.assert_close(matched, expected)


def test_grids_come_back_in_float32_and_equal_ones_untouched() -> None:
    tokens = draw(1, 16, 2).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        matched = match_grid(tokens, from_grid=(4, 4), to_grid=(3, 3))
    assert matched.dtype == torch.float32
    torch.testing.assert_close(
        matched, match_grid(tokens.float(), from_grid=(4, 4), to_grid=(3, 3))
    )
    assert torch.equal(match_grid(tokens, from_grid=(4, 4), to_grid=(4, 4)), tokens.float())


@pytest.mark.parametrize(
    ("shape", "to_grid"), [((1, 17, 2), (3, 3)), ((16, 2), (3, 3)), ((1, 16, 2), (0, 3))]
)
def test_refuses_tokens_that_are_no_grid(shape: tuple[int, ...], to_grid: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="Leave out class and register tokens"):
        match_grid(torch.ones(shape), from_grid=(4, 4), to_grid=to_grid)
