"""The KoLeo regulariser against a double loop, known values and its bounds."""

import math

import pytest
import torch

from anlage.objectives.koleo import koleo_loss
from reference.losses import slow_koleo_loss


def test_equals_the_double_loop() -> None:
    batch = torch.randn(17, 6, generator=torch.Generator().manual_seed(1))
    assert koleo_loss(batch).item() == pytest.approx(slow_koleo_loss(batch.numpy()), abs=1e-5)


def test_orthogonal_tiles_are_the_square_root_of_two_apart() -> None:
    assert koleo_loss(torch.eye(5)).item() == pytest.approx(-math.log(math.sqrt(2)), abs=1e-6)


def test_two_opposite_tiles_reach_the_lower_bound() -> None:
    opposite = torch.tensor([[1.0, 0.0], [-2.0, 0.0]])
    assert koleo_loss(opposite).item() == pytest.approx(-math.log(2), abs=1e-6)


def test_exact_duplicates_cost_18_and_have_a_finite_gradient() -> None:
    batch = torch.ones(4, 3).requires_grad_()
    loss = koleo_loss(batch)
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(1e-8), rel=1e-4)
    assert torch.isfinite(batch.grad).all()


def test_only_the_nearest_neighbour_counts() -> None:
    batch = torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.2]])
    moved = torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, -0.2]])
    before, after = (koleo_loss(b, reduction="none")[0] for b in (batch, moved))
    torch.testing.assert_close(before, after)
