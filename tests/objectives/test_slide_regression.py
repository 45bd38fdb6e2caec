"""Losses of numbers against one term at a time, known values, direction, refusals."""

import pytest
import torch
from objectives.slide_loss_checks import descended, follows_its_gradient

from anlage.objectives.slide_regression import regression_loss, target_moments
from reference.slow_slide_losses import slow_regression_loss

PENALTIES = ["mse", "huber"]
VALUE = torch.tensor([[0.3, -2], [4.0, 0.1], [-1.2, 0.7]])
TARGET = torch.tensor([[0.0, 0.5], [1.0, 0.0], [-1.0, 3.0]])


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("delta", [0.5, 2.0])
def test_equals_one_term_at_a_time(penalty: str, delta: float) -> None:
    expected = [
        slow_regression_loss(value, target, penalty=penalty, delta=delta)
        for value, target in zip(VALUE.tolist(), TARGET.tolist(), strict=True)
    ]
    found = regression_loss(VALUE, TARGET, penalty=penalty, delta=delta)
    torch.testing.assert_close(found, torch.tensor(expected))


def test_known_values() -> None:
    value, target = torch.tensor([[3.0]]), torch.tensor([[0.0]])
    assert regression_loss(value, target).item() == 9
    assert regression_loss(value, target, penalty="huber").item() == 2.5


def test_moments_standardise() -> None:
    target = torch.tensor([[1e6, 2], [1e6 + 1, 4], [1e6 + 5, 9]])
    moments = target_moments(target)
    standard = moments.standardised(target)
    torch.testing.assert_close(standard.mean(dim=0), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(standard.std(dim=0, correction=0), torch.ones(2))
    assert moments.standardised(target)[1].tolist() == pytest.approx([-0.46291, -0.33968], abs=1e-4)
    assert target_moments(torch.tensor([1, 3])).standardised(torch.tensor([2])).tolist() == [[0.0]]


@pytest.mark.parametrize("penalty", PENALTIES)
def test_gradient_and_direction(penalty: str) -> None:
    def loss(value: torch.Tensor) -> torch.Tensor:
        return regression_loss(value, TARGET, penalty=penalty)

    follows_its_gradient(loss, VALUE)
    assert (descended(loss, VALUE, rate=2.0) - TARGET).abs().max() < 0.05


NAN = float("nan")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: regression_loss(VALUE, TARGET[:, 0]), "targets of shape (bags, outputs); got"),
        (lambda: regression_loss(VALUE, TARGET * NAN), "finite targets; got 6 of 6"),
        (lambda: regression_loss(VALUE * NAN, TARGET), "finite outputs; got 6 of 6"),
        (lambda: regression_loss(VALUE, TARGET, penalty="mae"), "'mse' or 'huber'; got 'mae'"),
        (lambda: regression_loss(VALUE, TARGET, delta=0), "delta > 0; got 0"),
        (lambda: target_moments(torch.ones(4)), "targets that vary; got 4 rows"),
        (lambda: target_moments(torch.ones(1)), "2 rows or more"),
        (lambda: target_moments(torch.tensor([1, NAN])), "finite targets; got 1 of 2"),
    ],
)
def test_refusals(call, says: str) -> None:
    with pytest.raises(ValueError, match="needs") as refusal:
        call()
    assert says in str(refusal.value)
