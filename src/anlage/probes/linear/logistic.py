"""Multinomial logistic regression on frozen embeddings, solved to its optimum."""

# Shape suffixes: M train rows, D embedding width, C classes.

from __future__ import annotations

import torch

from anlage.probes.checks import Rows, train_side
from anlage.probes.linear.softmax_head import (
    head_of,
    one_vector_for_two,
    refuse_cost,
    refuse_dtype,
    refuse_large,
    softmax_objective,
)
from anlage.probes.linear.solver import MAX_ITERATIONS, minimise
from anlage.probes.precision import float32_products
from anlage.probes.prediction import LinearHead


def logistic_probe(
    train_MD: Rows,
    train_label_M: Rows,
    *,
    cost: float = 0.1,
    balance_classes: bool = False,
    standardise: bool = True,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    max_iterations: int = MAX_ITERATIONS,
) -> LinearHead:
    """L2-regularised multinomial logistic regression, solved to its optimum.

        cost * sum_i w(y_i) * cross_entropy_i + |W|_F^2 / 2

    The bias is not penalised. For two classes, |W|^2 is that of the one vector
    W_1 - W_0. Both are scikit-learn's ``LogisticRegression(C=cost)``.

    Features are standardised with the mean and deviation of the train side (a constant one is
    only centred), block by block. Solved by preconditioned L-BFGS, see ``solver.minimise``; it
    reads embeddings once per evaluation, in blocks of 4 MiB, and keeps one sample of at most 12 D
    rows (or 8,192) and two D x D float64 matrices beside them. Products are in ``dtype`` (never
    TF32, whatever autocast says), sums over blocks, the objective and the parameters in float64.

    Args:
        train_MD: (M, D) embeddings of the train side.
        train_label_M: (M,) their labels, strings or integers.
        cost: Weight of the data against the penalty, > 0 (scikit-learn's ``C``).
        balance_classes: Weigh a class by M / (n_classes * its rows) instead of by 1.
        standardise: Whether features are centred and scaled first.
        dtype: float32 or float64, of embeddings and products.
        device: Where to compute; by default where the embeddings lie.
        max_iterations: Quasi-Newton steps at most.

    Returns:
        The head. ``has_converged`` says that the objective lies within 1e-8 (float64: 1e-14) of
        its minimum, relative, as predicted by the Newton decrement.

    Raises:
        ValueError: If an array is unusable, the train side has one class, cost is not > 0, or
            features that are not standardised are too large to square.

    Source: scikit-learn's objective. UNI's own are in ``linear_probe_uni``.
    """
    who = "logistic_probe"
    refuse_cost(who, cost)
    refuse_dtype(who, dtype)
    train, class_C, code_M = train_side(who, train_MD, train_label_M, device=device, dtype=dtype)
    if not standardise:
        refuse_large(who, train)
    objective = softmax_objective(
        train,
        code_M,
        n_classes=len(class_C),
        cost=cost,
        penalty=one_vector_for_two(len(class_C)),
        balance_classes=balance_classes,
        standardise=standardise,
    )
    with float32_products(train.device):
        solution = minimise(objective, max_iterations=max_iterations)
    return head_of(who, objective, solution, class_C, note=f"cost {cost:g}")
