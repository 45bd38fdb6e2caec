"""The loss of masked slide pretraining: an oracle in loops, MAE's formula, bounds, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from anlage.objectives.masked_slide import masked_tile_error, standardised

N_HIDDEN = [3, 1, 4]


def rows(seed: int, n: int = 8, width: int = 6) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)) * 3 + 1


def test_each_tile_is_standardised_over_its_own_values() -> None:
    embedding = rows(0)
    wanted = [(row - row.mean()) / np.sqrt(row.var() + 1e-6) for row in embedding.numpy()]
    np.testing.assert_allclose(standardised(embedding).numpy(), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(standardised(5 * embedding + 7), standardised(embedding))
    assert not standardised(torch.full((1, 6), 3.0)).any()
    assert standardised(embedding.half()).dtype == torch.float32


def test_bags_weigh_the_same_however_many_tiles_they_have() -> None:
    predicted, target = rows(1), rows(2)
    found = masked_tile_error(predicted, target, N_HIDDEN)
    wanted, first = [], 0
    for n in N_HIDDEN:
        squares = [
            float((predicted[r, d] - target[r, d]) ** 2)
            for r in range(first, first + n)
            for d in range(6)
        ]
        wanted.append(sum(squares) / len(squares))
        first += n
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5)
    assert not masked_tile_error(target, target, N_HIDDEN).any()


def test_predicting_nothing_costs_one() -> None:
    """The variance of a standardised tile is 1, so that zeros have an error of 1."""
    target = standardised(rows(3, width=512))
    error = masked_tile_error(torch.zeros_like(target), target, N_HIDDEN)
    torch.testing.assert_close(error, torch.ones(3), rtol=1e-4, atol=0)


def test_descent_reaches_the_target() -> None:
    target = standardised(rows(4))
    guess = torch.zeros_like(target, requires_grad=True)
    for _ in range(50):
        (gradient,) = torch.autograd.grad(masked_tile_error(guess, target, N_HIDDEN).mean(), guess)
        guess = (guess - 5 * gradient).detach().requires_grad_()
    assert masked_tile_error(guess, target, N_HIDDEN).max() < 1e-3


def test_autocast_does_not_reach_the_error() -> None:
    predicted, target = rows(5).bfloat16(), rows(6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = masked_tile_error(predicted, target, N_HIDDEN)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, masked_tile_error(predicted, target, N_HIDDEN))


@pytest.mark.parametrize(
    ("n_rows", "n_hidden"), [(8, [3, 5, 1]), (8, [8, 0]), (7, [3, 1, 4]), (8, [])]
)
def test_numbers_that_do_not_fit_are_refused(n_rows: int, n_hidden: list[int]) -> None:
    with pytest.raises(ValueError, match=r"masked_tile_error: needs .*Leave out bags"):
        masked_tile_error(rows(0, n_rows), rows(1), n_hidden)
