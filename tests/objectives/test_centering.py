"""Centred targets and the running centre against the formulas written out."""

import numpy as np
import pytest
import torch

from anlage.objectives.centering import next_center
from reference.whole_logits import centered_targets


def draw() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(8)
    return torch.randn(6, 5, generator=generator), torch.randn(5, generator=generator)


def test_targets_equal_the_formula_in_float64() -> None:
    logits, center = draw()
    exponent = np.exp((logits.double().numpy() - center.double().numpy()) / 0.07)
    wanted = exponent / exponent.sum(1, keepdims=True)
    np.testing.assert_allclose(
        centered_targets(logits, center, temperature=0.07), wanted, atol=1e-6
    )


def test_logits_at_the_centre_give_uniform_targets() -> None:
    _, center = draw()
    targets = centered_targets(center.expand(3, -1), center, temperature=0.04)
    torch.testing.assert_close(targets, torch.full((3, 5), 0.2))


def test_views_and_rows_are_treated_alike() -> None:
    logits, center = draw()
    torch.testing.assert_close(
        next_center(center, logits.view(2, 3, 5)), next_center(center, logits)
    )


def test_center_moves_a_tenth_of_the_way_to_the_mean() -> None:
    logits, center = draw()
    wanted = 0.9 * center + 0.1 * logits.mean(0)
    torch.testing.assert_close(next_center(center, logits, momentum=0.9), wanted)


def test_center_settles_at_the_mean_and_leaves_its_argument() -> None:
    logits, center = draw()
    start = center.clone()
    moving = center
    for _ in range(200):
        moving = next_center(moving, logits)
    torch.testing.assert_close(moving, logits.mean(0))
    torch.testing.assert_close(center, start, rtol=0, atol=0)


def test_no_rows_leave_the_center() -> None:
    _, center = draw()
    torch.testing.assert_close(next_center(center, torch.zeros(0, 5)), center, rtol=0, atol=0)


def test_is_float32_and_carries_no_gradient() -> None:
    logits, center = draw()
    logits = logits.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = centered_targets(logits, center, temperature=0.07), next_center(center, logits)
    assert all(o.dtype == torch.float32 and not o.requires_grad for o in outputs)


def test_refusals_say_what_to_do() -> None:
    logits, center = draw()
    with pytest.raises(ValueError, match="needs temperature > 0"):
        centered_targets(logits, center, temperature=0.0)
    with pytest.raises(ValueError, match="Keep one centre for each head"):
        centered_targets(logits, center[:4], temperature=0.1)
    with pytest.raises(ValueError, match="Keep one centre for each head"):
        next_center(center[:4], logits)
    with pytest.raises(ValueError, match="needs 0 <= momentum <= 1; got 1.5"):
        next_center(center, logits, momentum=1.5)
