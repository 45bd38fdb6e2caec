"""What every loss of slides is tried for: its gradient, and that descent follows it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[[Tensor], Tensor]


def follows_its_gradient(loss: Loss, logits: Tensor, *, step: float = 1e-2) -> None:
    """The gradient is that of central differences, entry by entry."""
    point = logits.clone().requires_grad_()
    loss(point).sum().backward()
    for place in range(logits.numel()):
        change = torch.zeros_like(logits)
        change.view(-1)[place] = step
        slope = (loss(logits + change).sum() - loss(logits - change).sum()) / (2 * step)
        torch.testing.assert_close(point.grad.view(-1)[place], slope, atol=2e-3, rtol=2e-3)


def descended(loss: Loss, logits: Tensor, *, rate: float = 0.5) -> Tensor:
    """Logits after 50 steps of descent, each of which lowers the loss."""
    point = logits.clone().requires_grad_()
    before = float("inf")
    for _ in range(50):
        value = loss(point).mean()
        assert value.item() <= before + 1e-6
        before = value.item()
        (slope,) = torch.autograd.grad(value, point)
        point = (point - rate * slope).detach().requires_grad_()
    return point.detach()
