"""Sinkhorn-Knopp as a bias against the textbook iteration, and what it promises."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anlage.objectives.sinkhorn import sinkhorn_bias
from reference.sinkhorn import slow_sinkhorn_targets
from reference.whole_logits import scores_of, sinkhorn_targets, targets_of


def logits(n_rows: int = 12, n_prototypes: int = 7, *, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.3 * torch.randn(n_rows, n_prototypes, generator=generator)


@settings(max_examples=30, deadline=None)
@given(
    n_rows=st.integers(1, 20),
    n_prototypes=st.integers(1, 20),
    n_iterations=st.integers(1, 6),
    temperature=st.floats(0.03, 2.0),
    seed=st.integers(0, 1000),
)
def test_equals_the_textbook_iteration(n_rows, n_prototypes, n_iterations, temperature, seed):
    x = logits(n_rows, n_prototypes, seed=seed)
    slow = slow_sinkhorn_targets(x.numpy(), temperature, n_iterations)
    fast = sinkhorn_targets(x, temperature=temperature, n_iterations=n_iterations)
    torch.testing.assert_close(fast.double(), torch.from_numpy(slow), atol=2e-6, rtol=2e-5)


def test_the_bias_alone_gives_the_targets() -> None:
    x = logits()
    bias = sinkhorn_bias(scores_of(x[None], temperature=0.07))
    assert bias.shape == (7,)
    torch.testing.assert_close((x / 0.07 + bias).softmax(-1), sinkhorn_targets(x, temperature=0.07))


def test_uniform_logits_give_uniform_targets() -> None:
    targets = sinkhorn_targets(torch.full((6, 5), 3.0), temperature=0.04)
    torch.testing.assert_close(targets, torch.full((6, 5), 0.2))
    entropy, usage = targets_of(targets[None]).statistics()
    assert entropy.item() == pytest.approx(math.log(5), rel=1e-6)
    assert usage.item() == pytest.approx(1.0, rel=1e-6)


def test_rows_sum_to_one_and_lie_in_the_simplex() -> None:
    targets = sinkhorn_targets(logits(40, 9), temperature=0.04)
    torch.testing.assert_close(targets.sum(1), torch.ones(40))
    assert targets.min() >= 0


def test_marginals_tend_to_uniform() -> None:
    x = logits(40, 9) + torch.linspace(0, 1, 9)  # a collapse towards the last prototypes
    skew = [
        (sinkhorn_targets(x, temperature=0.1, n_iterations=n).sum(0) - 40 / 9).abs().max().item()
        for n in (1, 3, 10, 100)
    ]
    assert skew == sorted(skew, reverse=True)
    assert skew[0] < (x / 0.1).softmax(-1).sum(0).sub(40 / 9).abs().max().item()
    assert skew[-1] < 1e-2


def test_a_prototype_everybody_prefers_is_taken_off() -> None:
    x = logits(40, 9)
    favoured = x.clone()
    favoured[:, 2] += 1.0
    torch.testing.assert_close(
        sinkhorn_targets(favoured, temperature=0.1), sinkhorn_targets(x, temperature=0.1),
        atol=1e-5, rtol=1e-4,
    )  # fmt: skip


def test_order_of_rows_and_of_prototypes_does_not_matter() -> None:
    x = logits()
    targets = sinkhorn_targets(x, temperature=0.07)
    rows, columns = torch.randperm(12), torch.randperm(7)
    torch.testing.assert_close(sinkhorn_targets(x[rows], temperature=0.07), targets[rows])
    torch.testing.assert_close(
        sinkhorn_targets(x[:, columns], temperature=0.07), targets[:, columns]
    )


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e6])
def test_extreme_logits_stay_finite(scale: float) -> None:
    x = scale * logits()
    x[3] = -scale
    x[:, 5] = scale
    targets = sinkhorn_targets(x, temperature=0.04)
    assert torch.isfinite(sinkhorn_bias(scores_of(x[None], temperature=0.04))).all()
    torch.testing.assert_close(targets.sum(1), torch.ones(12))


def test_is_float32_whatever_comes_in_and_carries_no_gradient() -> None:
    x = logits().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        targets = sinkhorn_targets(x, temperature=0.07)
    assert targets.dtype == torch.float32
    assert not targets.requires_grad
    torch.testing.assert_close(targets, sinkhorn_targets(x.detach().float(), temperature=0.07))


def test_no_rows_are_no_targets() -> None:
    assert sinkhorn_bias(scores_of(torch.zeros(1, 0, 5))).tolist() == [0.0] * 5
    assert sinkhorn_targets(torch.zeros(0, 5), temperature=0.1).shape == (0, 5)


def test_one_hot_targets_have_no_entropy_and_use_what_they_name() -> None:
    one_hot = torch.eye(4)[[0, 0, 1, 1, 1, 0]]
    entropy, usage = targets_of(one_hot[None]).statistics()
    assert entropy.item() == 0
    assert usage.item() == pytest.approx(2 / 4, rel=1e-6)


@pytest.mark.parametrize("temperature", [0.0, -0.1, math.nan])
def test_refuses_a_temperature_that_is_not_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match="needs temperature > 0"):
        sinkhorn_targets(logits(), temperature=temperature)


def test_refuses_no_iteration() -> None:
    with pytest.raises(ValueError, match="DINOv2 runs 3"):
        sinkhorn_bias(scores_of(logits()[None]), n_iterations=0)
