"""Losses of numbers: squared error or Huber's, on standardised targets.

Shape suffixes: N train rows, B bags, C outputs.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from anlage.objectives.refusals import need_positive
from anlage.objectives.slide_targets import need_finite, need_shapes

Penalty = Literal["mse", "huber"]


class Moments(NamedTuple):
    """Where a target lies and how far it spreads, from the train side only.

    Attributes:
        mean_C: (C,) float64 mean.
        deviation_C: (C,) float64 deviation, > 0.
    """

    mean_C: Tensor
    deviation_C: Tensor

    def standardised(self, target_BC: Tensor) -> Tensor:
        """(B, C) float32 targets of mean 0 and deviation 1 on the train side."""
        column_BC = target_BC[:, None] if target_BC.ndim == 1 else target_BC
        standard_BC: Tensor = (column_BC.double() - self.mean_C) / self.deviation_C
        return standard_BC.float()


def target_moments(target_NC: Tensor) -> Moments:
    """Mean and deviation of each output.

    Args:
        target_NC: (N,) or (N, C) targets of the train side, any one unit an output.

    Raises:
        ValueError: If a target is not finite, there are fewer than 2 rows, or an output does not
            vary.
    """
    column_NC = (target_NC[:, None] if target_NC.ndim == 1 else target_NC).double()
    need_finite("target_moments", "targets", column_NC)
    deviation_C = column_NC.std(dim=0, correction=0)
    if len(column_NC) < 2 or not bool((deviation_C > 0).all()):
        msg = (
            f"target_moments: needs 2 rows or more and targets that vary; got {len(column_NC)} "
            f"rows of deviations {deviation_C.tolist()}. Check the label column."
        )
        raise ValueError(msg)
    return Moments(column_NC.mean(dim=0), deviation_C)


def regression_loss(
    value_BC: Tensor, target_BC: Tensor, *, penalty: Penalty = "mse", delta: float = 1.0
) -> Tensor:
    """Mean penalty over the outputs of each bag, in float32.

        mse:    (v - t)^2
        huber:  (v - t)^2 / 2  where |v - t| <= delta,  else  delta (|v - t| - delta / 2)

    Args:
        value_BC: (B, C) outputs of the model, any floating dtype.
        target_BC: (B, C) targets, standardised (``Moments.standardised``).
        penalty: Which of the two.
        delta: Where Huber's becomes linear, in deviations of the target, > 0.

    Returns:
        (B,) float32, 0 or more.

    Raises:
        ValueError: If a shape does not fit, a value or target is not finite, or ``penalty`` or
            ``delta`` is none.

    Source: Huber 1964, Annals of Mathematical Statistics 35.
    """
    need_shapes("regression_loss", value_BC, target_BC, each=True)
    need_finite("regression_loss", "outputs", value_BC)
    need_finite("regression_loss", "targets", target_BC)
    need_positive("regression_loss", "delta", delta)
    if penalty not in {"mse", "huber"}:
        msg = f"regression_loss: needs penalty 'mse' or 'huber'; got {penalty!r}. Choose one."
        raise ValueError(msg)
    value, target = value_BC.float(), target_BC.float()
    if penalty == "mse":
        loss_BC = torch.square(value - target)
    else:
        loss_BC = functional.huber_loss(value, target, delta=delta, reduction="none")
    return loss_BC.mean(dim=1)
