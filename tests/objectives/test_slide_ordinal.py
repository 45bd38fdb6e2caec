"""Losses of grades against one term at a time, known values, direction, refusals."""

import math

import pytest
import torch
from objectives.slide_loss_checks import descended, follows_its_gradient
from torch.nn import functional

from anlage.objectives.slide_ordinal import grade_probabilities, ordinal_loss
from reference.slow_slide_losses import slow_ordinal_loss

LINKS = ["coral", "cumulative"]
FALLING = torch.tensor([[3.0, 1, -1, -2], [0.5, 0.2, 0.1, -3], [-2, -3, -4, -5]])
GRADES = torch.tensor([2, 4, 0])


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("grades", [GRADES, torch.tensor([0, 1, 4]), torch.tensor([4, 0, 3])])
def test_equals_one_bag_at_a_time(link: str, grades: torch.Tensor) -> None:
    expected = [
        slow_ordinal_loss(logits, target, link=link)
        for logits, target in zip(FALLING.tolist(), grades.tolist(), strict=True)
    ]
    found = ordinal_loss(FALLING, grades, link=link)
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize("link", LINKS)
def test_with_two_grades_both_are_the_binary_loss(link: str) -> None:
    loss = ordinal_loss(torch.tensor([[0.7], [0.7]]), torch.tensor([0, 1]), link=link)
    expected = [-math.log(1 - 1 / (1 + math.exp(-0.7))), math.log(1 + math.exp(-0.7))]
    assert loss.tolist() == pytest.approx(expected)


def test_the_cumulative_loss_is_that_of_the_probabilities() -> None:
    rows = torch.arange(3)
    expected = -grade_probabilities(FALLING)[rows, GRADES].log()
    torch.testing.assert_close(ordinal_loss(FALLING, GRADES, link="cumulative"), expected)


@pytest.mark.parametrize("shift", [0.0, 60.0, -60.0])
def test_the_cumulative_loss_does_not_cancel_where_logits_are_large(shift: float) -> None:
    point = (FALLING + shift).requires_grad_()
    loss = ordinal_loss(point, GRADES, link="cumulative")
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(point.grad).all()


@pytest.mark.parametrize("logits", [FALLING, -FALLING, FALLING * 30])
def test_probabilities_sum_to_one(logits: torch.Tensor) -> None:
    chance = grade_probabilities(logits)
    assert chance.shape == (3, 5)
    assert (chance >= 0).all()
    torch.testing.assert_close(chance.sum(dim=1), torch.ones(3))


@pytest.mark.parametrize("link", LINKS)
def test_gradient(link: str) -> None:
    follows_its_gradient(lambda z: ordinal_loss(z, GRADES, link=link), FALLING, step=1e-3 * 5)


@pytest.mark.parametrize("link", LINKS)
def test_descent_learns_the_grades(link: str) -> None:
    def falling(free: torch.Tensor) -> torch.Tensor:
        return free[:, :1] - functional.softplus(free[:, 1:]).cumsum(dim=1)

    free = descended(lambda z: ordinal_loss(falling(z), GRADES, link=link), torch.zeros(3, 5))
    assert torch.equal(grade_probabilities(falling(free)).argmax(dim=1), GRADES)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: ordinal_loss(FALLING, GRADES[:2]), "got (3, 4) and (2,)"),
        (lambda: ordinal_loss(FALLING, GRADES + 1), "0 to 4; got [5.0]"),
        (lambda: ordinal_loss(FALLING / 0, GRADES), "finite logits; got 12 of 12"),
        (lambda: ordinal_loss(FALLING, GRADES, link="probit"), "'coral' or 'cumulative'; got 'pro"),
        (lambda: ordinal_loss(-FALLING, GRADES, link="cumulative"), "logits that fall"),
    ],
)
def test_refusals(call, says: str) -> None:
    with pytest.raises(ValueError, match="ordinal_loss: needs") as refusal:
        call()
    assert says in str(refusal.value)
