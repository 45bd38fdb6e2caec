"""Logistic regression at every cost of a grid, and the cost that an inner split chooses."""

# Shape suffixes: M train rows, D embedding width, K costs, F inner folds, C classes.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from anlage.probes.checks import Rows, labels_of, train_side
from anlage.probes.linear.curvature import Curvature
from anlage.probes.linear.softmax_head import (
    head_of,
    one_vector_for_two,
    refuse_cost,
    refuse_dtype,
    refuse_large,
    softmax_objective,
)
from anlage.probes.linear.solver import minimise
from anlage.probes.precision import float32_products
from anlage.probes.prediction import LinearHead
from anlage.probes.splits.grouped import grouped_folds
from anlage.probes.splits.split import Split

Criterion = Literal["cross_entropy", "balanced_accuracy"]
TITAN_COSTS = tuple(float(cost) for cost in np.logspace(-5, 6, 45))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Choice:
    """A cost chosen on inner folds, and the head of that cost trained on all rows.

    Attributes:
        cost: The smallest of the best costs.
        head: ``logistic_path``'s, of that cost.
        loss_FK: (F, K) loss of each inner fold's held-out rows at each cost; less is better.
    """

    cost: float
    head: LinearHead
    loss_FK: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LogisticPath:
    """Heads at rising costs.

    Attributes:
        cost_K: (K,) rising.
        heads: One for each.
        norm_K: (K,) Frobenius norm of each head's weights; rises with the cost.
    """

    cost_K: NDArray[np.float64]
    heads: tuple[LinearHead, ...]
    norm_K: NDArray[np.float64]

    def head(self, cost: float) -> LinearHead:
        """The head of one of the costs.

        Raises:
            ValueError: If there is none.
        """
        near = int(np.abs(np.log(self.cost_K) - np.log(max(cost, 1e-300))).argmin())
        if not np.isclose(self.cost_K[near], cost, rtol=1e-9):
            msg = (
                f"LogisticPath: needs one of its {len(self.cost_K)} costs; got {cost}. The nearest "
                f"is {self.cost_K[near]:g}."
            )
            raise ValueError(msg)
        return self.heads[near]


def logistic_path(
    train_MD: Rows,
    train_label_M: Rows,
    *,
    costs: Sequence[float] = TITAN_COSTS,
    balance_classes: bool = False,
    standardise: bool = True,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> LogisticPath:
    """``logistic_probe`` at each cost, from the strongest penalty to the weakest.

    Each solution starts from the one before; the moments, the sample of rows and their Gram
    matrix are computed once. Memory as there, and a head for each cost.

    Args:
        train_MD: (M, D) embeddings of the train side.
        train_label_M: (M,) their labels, strings or integers.
        costs: Any order, > 0; by default TITAN's 45 from 1e-5 to 1e6.
        balance_classes: See ``logistic_probe``.
        standardise: See ``logistic_probe``.
        dtype: See ``logistic_probe``.
        device: See ``logistic_probe``.

    Raises:
        ValueError: If an array is unusable, the train side has one class, or a cost is not > 0.

    Source: Ding et al. 2025, TITAN, and CONCH's evaluation code (grid).
    """
    who = "logistic_path"
    cost_K = _rising(who, costs)
    refuse_dtype(who, dtype)
    train, class_C, code_M = train_side(who, train_MD, train_label_M, device=device, dtype=dtype)
    if not standardise:
        refuse_large(who, train)
    unit = softmax_objective(
        train,
        code_M,
        n_classes=len(class_C),
        cost=1.0,
        penalty=one_vector_for_two(len(class_C)),
        balance_classes=balance_classes,
        standardise=standardise,
    )
    heads = []
    with float32_products(train.device):
        curvature, parameter_CE = Curvature(unit), unit.prior()
        for cost in cost_K.tolist():
            objective = replace(unit, weight_M=unit.weight_M * cost)
            solution = minimise(objective, start_CE=parameter_CE, curvature=curvature, cost=cost)
            parameter_CE = solution.parameter_CE
            heads.append(head_of(who, objective, solution, class_C, note=f"cost {cost:g}"))
    norm_K = np.array([float(head.weight_CD.double().norm()) for head in heads])
    return LogisticPath(cost_K=cost_K, heads=tuple(heads), norm_K=norm_K)


def logistic_best(
    train_MD: Rows,
    train_label_M: Rows,
    group_M: ArrayLike,
    *,
    costs: Sequence[float] = TITAN_COSTS,
    n_folds: int = 3,
    criterion: Criterion = "cross_entropy",
    balance_classes: bool = False,
    standardise: bool = True,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Choice:
    """The cost that is best on inner folds of whole groups, then all train rows at that cost.

    The test side is no argument: it cannot be seen. Equal losses go to the smaller cost.

    Args:
        train_MD: (M, D) embeddings of the train side.
        train_label_M: (M,) their labels, strings or integers.
        group_M: (M,) patient of each row; a patient is never on both sides of an inner fold.
        costs: See ``logistic_path``.
        n_folds: Inner folds.
        criterion: Mean cross-entropy of held-out rows, or 1 - balanced accuracy.
        balance_classes: See ``logistic_probe``.
        standardise: See ``logistic_probe``.
        seed: Of the inner folds.
        dtype: See ``logistic_probe``.
        device: See ``logistic_probe``.

    Raises:
        ValueError: As ``logistic_path``; if groups are unusable or too few in all or in a class, or
            the criterion is none.
    """
    who = "logistic_best"
    cost_K = _rising(who, costs)
    _refuse_words(who, dtype, criterion)
    train, class_C, code_M = train_side(who, train_MD, train_label_M, device=device, dtype=dtype)
    group = labels_of(who, "groups", group_M, n_rows=len(train))
    code = code_M.cpu().numpy()

    path = partial(
        logistic_path, balance_classes=balance_classes, standardise=standardise, dtype=dtype
    )
    folds = grouped_folds(code, group, n_folds=n_folds, seed=seed)
    _refuse_lost_classes(who, class_C, [code[split.train] for split in folds])

    def losses(split: Split) -> list[float]:
        kept = train[torch.from_numpy(split.train).to(train.device)]
        inner = path(kept, class_C[code[split.train]], costs=cost_K.tolist())
        held_out = train[torch.from_numpy(split.test).to(train.device)]
        truth = torch.from_numpy(code[split.test])
        return [_loss(head.logits(held_out), truth, criterion) for head in inner.heads]

    loss_FK = np.array([losses(split) for split in folds])
    cost = float(cost_K[int(loss_FK.mean(axis=0).argmin())])
    final = path(train, class_C[code], costs=cost_K[cost_K <= cost].tolist())
    return Choice(cost=cost, head=final.head(cost), loss_FK=loss_FK)


def _rising(who: str, costs: Sequence[float]) -> NDArray[np.float64]:
    if not len(costs):
        msg = f"{who}: costs needs one number or more; got none. Leave it out for TITAN's 45."
        raise ValueError(msg)
    for cost in costs:
        refuse_cost(who, cost)
    return np.unique(np.asarray(costs, dtype=np.float64))


def _refuse_words(who: str, dtype: torch.dtype, criterion: str) -> None:
    refuse_dtype(who, dtype)
    known = get_args(Criterion)
    if criterion not in known:
        msg = f"{who}: criterion needs to be one of {known}; got {criterion!r}. Choose one of them."
        raise ValueError(msg)


def _refuse_lost_classes(
    who: str, class_C: NDArray[Any], train_codes: Sequence[NDArray[np.int64]]
) -> None:
    for code_M in train_codes:
        lost = class_C[np.bincount(code_M, minlength=len(class_C)) == 0].tolist()
        if lost:
            msg = (
                f"{who}: every inner fold needs all classes on its train side; got none of {lost} "
                "in one. Take another seed or number of folds, or leave these classes out."
            )
            raise ValueError(msg)


def _loss(logits_NC: NDArray[np.float64], truth_N: Tensor, criterion: Criterion) -> float:
    logits = torch.from_numpy(logits_NC)
    if criterion == "cross_entropy":
        return float(torch.nn.functional.cross_entropy(logits, truth_N))
    right_N = (logits.argmax(dim=1) == truth_N).double()
    return 1 - float(
        torch.stack(
            [right_N[truth_N == c].mean() for c in torch.bincount(truth_N).nonzero()[:, 0]]
        ).mean()
    )
