"""One step of gradient descent on a flat tensor, as torch.optim takes it, without its overhead."""

# Shape suffixes: P numbers that are trained.

from __future__ import annotations

import math

import torch
from torch import Tensor


class AdamWDescent:
    """AdamW with torch's betas (0.9, 0.999), epsilon 1e-8 and decoupled weight decay.

    Calls the fused kernel that ``torch.optim.AdamW(fused=True)`` calls: one pass over the numbers
    and, for one small tensor, a tenth of the time that the optimiser around it takes.

    Source: Loshchilov and Hutter 2019, Decoupled weight decay regularization, arXiv:1711.05101.
    """

    def __init__(self, parameter_P: Tensor, *, weight_decay: float) -> None:
        self._parameter = parameter_P
        self._weight_decay = weight_decay
        self._first_P = torch.zeros_like(parameter_P)
        self._second_P = torch.zeros_like(parameter_P)
        self._n_steps = torch.zeros((), dtype=torch.float32, device=parameter_P.device)

    def step(self, gradient_P: Tensor, *, lr: float) -> None:
        """Change the numbers in place."""
        self._n_steps.add_(1)
        torch._fused_adamw_(
            [self._parameter],
            [gradient_P],
            [self._first_P],
            [self._second_P],
            [],
            [self._n_steps],
            lr=lr,
            beta1=0.9,
            beta2=0.999,
            weight_decay=self._weight_decay,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )


class SgdDescent:
    """Stochastic gradient descent with weight decay in the gradient, and momentum, as torch's."""

    def __init__(self, parameter_P: Tensor, *, weight_decay: float, momentum: float) -> None:
        self._parameter = parameter_P
        self._weight_decay = weight_decay
        self._momentum = momentum
        self._velocity_P = torch.zeros_like(parameter_P)

    def step(self, gradient_P: Tensor, *, lr: float) -> None:
        """Change the numbers in place; the gradient is used up."""
        if self._weight_decay:
            gradient_P.add_(self._parameter, alpha=self._weight_decay)
        if self._momentum:
            gradient_P = self._velocity_P.mul_(self._momentum).add_(gradient_P)
        self._parameter.add_(gradient_P, alpha=-lr)


def cosine_lr(step: int, *, peak_lr: float, n_steps: int) -> float:
    """Learning rate of a step, 0 to ``n_steps`` - 1: half a cosine from ``peak_lr`` towards 0."""
    return peak_lr * 0.5 * (1 + math.cos(math.pi * step / n_steps))


def diverged(who: str, *, n_steps: int, lr: float) -> str:
    """What to tell where weights have left the numbers."""
    return (
        f"{who}: the training needs to stay finite; got no usable head in {n_steps} steps at lr "
        f"{lr}. Lower lr, or z-score the embeddings."
    )
