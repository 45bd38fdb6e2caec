"""The kernel-density regulariser against a double loop, known values and its bounds."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from anlage.objectives.kde import kde_loss
from anlage.objectives.koleo import koleo_loss
from reference.losses import slow_kde_loss


@pytest.mark.parametrize("concentration", [0.5, 5.0, 40.0])
def test_equals_the_double_loop(concentration: float) -> None:
    batch = torch.randn(17, 6, generator=torch.Generator().manual_seed(1))
    slow = slow_kde_loss(batch.numpy(), concentration)
    assert kde_loss(batch, concentration=concentration).item() == pytest.approx(slow, abs=1e-5)


def test_a_collapsed_batch_costs_the_concentration_its_upper_bound() -> None:
    collapsed = torch.ones(9, 4)
    assert kde_loss(collapsed, concentration=3.0).item() == pytest.approx(3.0, rel=1e-6)
    assert kde_loss(torch.randn(9, 4), concentration=3.0).item() < 3.0


def test_two_opposite_tiles_cost_minus_the_concentration_its_lower_bound() -> None:
    opposite = torch.tensor([[1.0, 0.0], [-2.0, 0.0]])
    assert kde_loss(opposite, concentration=3.0).item() == pytest.approx(-3.0, rel=1e-6)


def test_orthogonal_tiles_cost_nothing() -> None:
    assert kde_loss(torch.eye(6)).item() == pytest.approx(0.0, abs=1e-6)


def test_a_tile_is_not_its_own_neighbour() -> None:
    # with the diagonal: log((e^5 + e^0) / 2) = 4.3; without: 0
    assert kde_loss(torch.eye(2), concentration=5.0).item() == pytest.approx(0.0, abs=1e-6)


def test_gradient_is_bounded_where_tiles_nearly_coincide_and_koleos_is_not() -> None:
    unit = normalize(torch.randn(8, 5, generator=torch.Generator().manual_seed(4)), dim=-1)
    largest = []
    for loss in (kde_loss, koleo_loss):
        batch = torch.cat([unit, unit + 1e-5]).requires_grad_()
        loss(batch).backward()
        largest.append(batch.grad.norm(dim=-1).max().item())
    assert largest[0] < 5.0  # the concentration
    assert largest[1] > 1000


@pytest.mark.parametrize("concentration", [0.0, -5.0, math.nan])
def test_refuses_a_concentration_that_is_not_positive(concentration: float) -> None:
    with pytest.raises(ValueError, match="needs concentration > 0"):
        kde_loss(torch.eye(3), concentration=concentration)
