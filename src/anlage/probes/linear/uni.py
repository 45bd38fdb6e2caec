"""UNI's linear probe, in both readings of its penalty."""

# Shape suffixes: M train rows, D embedding width, E = D + 1 (the bias last), C classes.

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import torch

from anlage.probes.checks import Rows, train_side
from anlage.probes.linear.curvature import Curvature
from anlage.probes.linear.objective import Penalty, SoftmaxObjective
from anlage.probes.linear.softmax_head import (
    head_of,
    one_vector_for_two,
    refuse_dtype,
    refuse_large,
    softmax_objective,
)
from anlage.probes.linear.solver import Solution, minimise
from anlage.probes.precision import float32_products
from anlage.probes.prediction import LinearHead

Reading = Literal["paper", "code"]
START_TOLERANCE = 1e-4


def linear_probe_uni(
    train_MD: Rows,
    train_label_M: Rows,
    *,
    reading: Reading = "paper",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> LinearHead:
    """UNI's linear probe at its optimum: logistic regression with lambda = 100 / (D * C).

    With Cost = 1 / lambda = D * C / 100, the two readings are

        "paper":  Cost * sum_i cross_entropy_i + |W|_F^2 / 2
        "code":   mean_i cross_entropy_i + |W|_F / (2 * Cost)

    "paper" squares the norm and sums over rows: what ``LogisticRegression(C=Cost)`` minimises, to
    which UNI's scripts switch with ``use_sklearn`` (for two classes |W|^2 is that of the one
    vector W_1 - W_0). "code" is what their own torch class minimises by default: the mean over
    rows, and the norm **not squared**. Biases are free. Features are taken as they are, neither
    centred nor scaled nor normalised. Where UNI stops L-BFGS after 1,000 iterations or at its
    tolerance of change, this goes on to the optimum. Under "code" all weights may be zero there.

    Memory and dtypes as in ``logistic_probe``.

    Args:
        train_MD: (M, D) embeddings of the train side; UNI joins train and validation.
        train_label_M: (M,) their labels, strings or integers.
        reading: Which objective.
        dtype: float32 or float64, of embeddings and products.
        device: Where to compute; by default where the embeddings lie.

    Raises:
        ValueError: If an array is unusable, the train side has one class, features are too large to
            square, or the reading is none.

    Source: Chen et al. 2024, UNI, arXiv:2308.15474, Methods (lambda); mahmoodlab/UNI at 42715ef,
    uni/downstream/eval_patch_features (objective of the code).
    """
    who = "linear_probe_uni"
    if reading not in get_args(Reading):
        msg = f"{who}: reading needs to be 'paper' or 'code'; got {reading!r}. Choose one of them."
        raise ValueError(msg)
    refuse_dtype(who, dtype)
    train, class_C, code_M = train_side(who, train_MD, train_label_M, device=device, dtype=dtype)
    refuse_large(who, train)
    n_classes = len(class_C)
    cost = train.shape[1] * n_classes / 100
    is_paper = reading == "paper"
    objective = softmax_objective(
        train,
        code_M,
        n_classes=n_classes,
        cost=cost if is_paper else 1 / len(train),
        penalty=one_vector_for_two(n_classes)
        if is_paper
        else Penalty(strength=0.5 / cost, is_squared=False),
    )
    with float32_products(train.device):
        solution = minimise(objective) if is_paper else minimise_with_norm(objective)
    return head_of(who, objective, solution, class_C, note=f"UNI {reading}, Cost {cost:g}")


def minimise_with_norm(objective: SoftmaxObjective) -> Solution:
    """The minimum where the penalty is a norm that is not squared, hence has a kink at zero.

    Zero weights are the minimum if the gradient of the cross-entropy there, with the best bias,
    is no longer than the penalty is strong. If they are not, the minimum of a squared penalty
    leads away from the kink, beyond which the objective is smooth.
    """
    prior_CE = objective.prior()
    value, gradient_CE = objective(prior_CE)
    if float(gradient_CE[:, :-1].norm()) <= objective.penalty.strength:
        return Solution(
            parameter_CE=prior_CE,
            value=value,
            relative_gap=0.0,
            has_converged=True,
            n_evaluations=1,
        )
    curvature = Curvature(objective)
    squared = replace(objective, penalty=Penalty(strength=objective.penalty.strength))
    start = minimise(squared, curvature=curvature, tolerance=START_TOLERANCE)
    solution = minimise(objective, start_CE=start.parameter_CE, curvature=curvature)
    n_evaluations = 1 + start.n_evaluations + solution.n_evaluations
    return replace(solution, n_evaluations=n_evaluations)
