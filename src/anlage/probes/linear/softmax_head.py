"""From labelled embeddings to a softmax objective, and from its solution to a linear head."""

# Shape suffixes: M train rows, D embedding width, C classes.

from __future__ import annotations

import logging
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from anlage.probes.linear.objective import Penalty, SoftmaxObjective
from anlage.probes.linear.solver import Solution
from anlage.probes.linear.standardise import mean_and_deviation
from anlage.probes.prediction import LinearHead

LOGGER = logging.getLogger(__name__)


def softmax_objective(
    train_MD: Tensor,
    code_M: Tensor,
    *,
    n_classes: int,
    cost: float,
    penalty: Penalty,
    balance_classes: bool = False,
    standardise: bool = False,
) -> SoftmaxObjective:
    """``cost * sum_i w_i * cross_entropy_i + penalty`` of checked embeddings and class codes."""
    weight_M = torch.full_like(code_M, cost, dtype=train_MD.dtype)
    if balance_classes:
        count_C = torch.bincount(code_M, minlength=n_classes)
        weight_M *= (len(code_M) / (n_classes * count_C)).to(train_MD.dtype)[code_M]
    mean_D = scale_D = None
    if standardise:
        mean_D, scale_D = mean_and_deviation(train_MD)
        mean_D = mean_D.to(train_MD.dtype)
    return SoftmaxObjective(
        train_MD=train_MD,
        code_M=code_M,
        weight_M=weight_M,
        n_classes=n_classes,
        penalty=penalty,
        mean_D=mean_D,
        scale_D=scale_D,
    )


def one_vector_for_two(n_classes: int) -> Penalty:
    """|W|_F^2 / 2; for two classes that of their difference, the one vector scikit-learn has."""
    return Penalty(strength=2.0 if n_classes == 2 else 1.0)


def head_of(
    who: str, objective: SoftmaxObjective, solution: Solution, class_C: NDArray[Any], *, note: str
) -> LinearHead:
    """The head of a solution, in the dtype and on the device of the embeddings."""
    if not solution.has_converged:
        LOGGER.warning(
            "%s: not converged after %d evaluations: about %.1e of the objective from its minimum",
            who,
            solution.n_evaluations,
            solution.relative_gap,
        )
    like = objective.train_MD
    width = like.shape[1]
    mean_D, scale_D = objective.mean_D, objective.scale_D
    return LinearHead(
        weight_CD=solution.parameter_CE[:, :-1].to(like.dtype),
        bias_C=solution.parameter_CE[:, -1].to(like.dtype),
        mean_D=like.new_zeros(width) if mean_D is None else mean_D,
        scale_D=like.new_ones(width) if scale_D is None else scale_D.to(like.dtype),
        class_C=class_C,
        has_converged=solution.has_converged,
        note=note,
    )


def refuse_cost(who: str, cost: float) -> None:
    """Refuse what is not finite and > 0.

    Raises:
        ValueError: If it is so.
    """
    if not 0 < cost < float("inf"):
        msg = f"{who}: cost needs to be finite and > 0; got {cost}. Try 0.1."
        raise ValueError(msg)


def refuse_dtype(who: str, dtype: torch.dtype) -> None:
    """Refuse a type that the solver has no tolerance for.

    Raises:
        ValueError: If it is neither float32 nor float64.
    """
    if dtype not in {torch.float32, torch.float64}:
        msg = (
            f"{who}: dtype needs to be torch.float32 or torch.float64; got {dtype}. "
            "Embeddings of other types are converted."
        )
        raise ValueError(msg)


def refuse_large(who: str, train_MD: Tensor) -> None:
    """Refuse features, not to be standardised, whose sums of squares would overflow.

    Raises:
        ValueError: If they would.
    """
    low, high = train_MD.aminmax()
    largest = max(-float(low), float(high))
    limit = float((torch.finfo(train_MD.dtype).max / 1000 / len(train_MD)) ** 0.5)
    if largest > limit:
        msg = (
            f"{who}: train needs features of at most {limit:.0e}, so that squares can be summed; "
            f"got {largest:.0e}. Divide all features by one number, or standardise them."
        )
        raise ValueError(msg)
