"""What KDE and KoLeo have in common: both must spread a batch, and refuse a batch of one."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from anlage.objectives.kde import kde_loss
from anlage.objectives.koleo import koleo_loss
from reference.losses import mean_pairwise_cosine

Loss = Callable[..., Tensor]
both = pytest.mark.parametrize("loss", [kde_loss, koleo_loss], ids=["kde", "koleo"])


def crowded(n_tiles: int = 24, width: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.ones(width) + 0.8 * torch.randn(n_tiles, width, generator=generator)


@both
def test_descent_spreads_the_batch(loss: Loss) -> None:
    batch = crowded().requires_grad_()
    before = mean_pairwise_cosine(batch.detach().numpy())
    optimizer = torch.optim.Adam([batch], lr=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()
    after = mean_pairwise_cosine(batch.detach().numpy())
    assert before > 0.4
    assert after < before - 0.3


@both
def test_a_spread_batch_costs_less_than_a_crowded_one(loss: Loss) -> None:
    assert loss(torch.eye(8)) < loss(crowded(8))


@both
def test_length_of_the_embeddings_does_not_matter(loss: Loss) -> None:
    batch = crowded()
    stretched = batch * torch.linspace(0.1, 50, len(batch))[:, None]
    torch.testing.assert_close(loss(batch), loss(stretched))


@both
def test_per_tile_values_average_to_the_loss(loss: Loss) -> None:
    per_tile = loss(crowded(), reduction="none")
    assert per_tile.shape == (24,)
    torch.testing.assert_close(per_tile.mean(), loss(crowded()))


@both
def test_order_of_the_tiles_does_not_matter(loss: Loss) -> None:
    batch, order = crowded(), torch.randperm(24, generator=torch.Generator().manual_seed(1))
    per_tile = loss(batch, reduction="none")
    torch.testing.assert_close(loss(batch[order], reduction="none"), per_tile[order])


@both
def test_gradient_equals_finite_differences(loss: Loss) -> None:
    batch = crowded(6, 4)
    direction = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    leaf = batch.clone().requires_grad_()
    loss(leaf).backward()
    step = 1e-2
    difference = (loss(batch + step * direction) - loss(batch - step * direction)) / (2 * step)
    assert (leaf.grad * direction).sum().item() == pytest.approx(difference.item(), rel=2e-3)


@both
def test_runs_in_float32_under_autocast(loss: Loss) -> None:
    batch = crowded().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(batch)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(batch.float()))


@both
def test_the_batch_itself_is_left_as_it_was(loss: Loss) -> None:
    batch = crowded()
    loss(batch)
    torch.testing.assert_close(batch, crowded(), rtol=0, atol=0)


@both
@pytest.mark.parametrize("shape", [(1, 8), (0, 8), (8,), (2, 3, 8)])
def test_refuses_a_batch_without_neighbours(loss: Loss, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="raise the batch size to 2 or more"):
        loss(torch.ones(shape))
