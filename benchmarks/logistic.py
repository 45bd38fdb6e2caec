"""Logistic regression to 1e-6 of its optimum: ours against the best of scikit-learn's solvers.

The squared-norm, sum-CE reading of UNI's probe: ``Cost * sum CE + |W|^2 / 2``, Cost = D * C / 100,
float32, standardised features, on made-up clusters and on the same clusters with a spectrum that
decays as 1 / rank, which is nearer to real embeddings. First the optimum is found in float64
(ours; no side may come below it). Then each side gets the loosest tolerance, of powers of ten, at
which its result, evaluated in float64, lies within 1e-6 of the optimum, relative. Then the two
take turns. scikit-learn's side is the fastest of lbfgs, newton-cg and newton-cholesky that comes
so near. A solver that needs more than ``--patience`` seconds for one fit is out; if none is left,
that time stands as a lower bound of theirs and is marked so.

Usage, in the repository:
    uv run benchmarks/logistic.py [--baselines ../shared/baselines] [--rounds 3] [--threads 2]
        [--shape 100000 1024 9] [--sets clusters decaying] [--patience 40] [--json FILE]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import sklearn.linear_model._linear_loss as linear_loss
import torch
from numpy.typing import ArrayLike
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import Tensor
from turns import take_turns

from anlage.probes.linear.objective import Penalty, SoftmaxObjective
from anlage.probes.linear.softmax_head import softmax_objective
from anlage.probes.linear.solver import minimise

NEAR = 1e-6
OUR_TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # the solver aims at a hundredth
THEIR_TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
MOST_OF_CHOLESKY = 2000  # parameters, above which its dense Hessian is no option


class TooLongError(Exception):
    """A solver was stopped at the end of the patience."""


class Problem:
    """One set of embeddings, its cost and the value of its optimum."""

    def __init__(self, train_MD: Tensor, code_M: Tensor, n_classes: int) -> None:
        self.train_MD, self.code_M, self.n_classes = train_MD, code_M, n_classes
        self.cost = train_MD.shape[1] * n_classes / 100
        self.array_MD, self.label_M = train_MD.numpy(), code_M.numpy()
        self.exact = self.objective(torch.float64)
        best = minimise(self.exact)
        if not best.has_converged:
            msg = f"the optimum was not found: {best.relative_gap:.1e} of it left"
            raise SystemExit(msg)
        self.least = best.value

    def objective(self, dtype: torch.dtype) -> SoftmaxObjective:
        """Ours, in this dtype."""
        return softmax_objective(
            self.train_MD.to(dtype),
            self.code_M,
            n_classes=self.n_classes,
            cost=self.cost,
            penalty=Penalty(),
        )

    def gap(self, weight_CD: ArrayLike | Tensor, bias_C: ArrayLike | Tensor) -> float:
        """Distance of a solution from the optimum, relative, in float64."""
        weight, bias = (torch.as_tensor(part, dtype=torch.float64) for part in (weight_CD, bias_C))
        value, _ = self.exact(torch.cat([weight, bias[:, None]], dim=1))
        if value < self.least * (1 - 1e-9):
            msg = f"a side found {value}, below what was taken for the optimum, {self.least}"
            raise SystemExit(msg)
        return value / self.least - 1


def main() -> None:
    """Measure, print a table and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--baselines", type=Path, default=Path("../shared/baselines"))
    parser.add_argument("--shape", type=int, nargs=3, default=(100_000, 1024, 9))
    parser.add_argument("--sets", nargs="+", default=["clusters", "decaying"])
    parser.add_argument("--rounds", type=int, default=3, help="measured, after one that is not")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--patience", type=float, default=40, help="seconds for one fit of theirs")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")  # of scikit-learn, where a loose tolerance is meant
    make = _module(given.baselines / "eva_linear_loop.py").make_embeddings
    figures: dict[str, Any] = {"shape": given.shape, "threads": given.threads, "sets": {}}
    print("| set | ours, s | scikit-learn, s | solver | ours over theirs |")
    print("| --- | --- | --- | --- | --- |")
    with threadpool_limits(given.threads):
        for name in given.sets:
            problem = Problem(*embeddings(make, name, given.shape), given.shape[2])
            got = measure(problem, n_rounds=given.rounds, patience=given.patience)
            figures["sets"][name] = got
            bound = ">" if got["theirs_is_a_bound"] else ""
            print(
                f"| {name} | {got['ours_s']:.2f} | {bound}{got['theirs_s']:.2f} | "
                f"{got['solver']} (tol {got['their_tolerance']:g}) | "
                f"{'<' if bound else ''}{got['ours_s'] / got['theirs_s']:.3f} |",
                flush=True,
            )
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def embeddings(
    make: Callable[..., tuple[Tensor, Tensor]], name: str, shape: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Standardised float32 embeddings and their classes."""
    x_MD, code_M = make(*shape)
    width = shape[1]
    if name == "decaying":
        generator = torch.Generator().manual_seed(1)
        turned_DD, _ = torch.linalg.qr(torch.randn(width, width, generator=generator))
        x_MD = (x_MD / torch.arange(1, width + 1)) @ turned_DD
    x_MD -= x_MD.mean(dim=0)
    x_MD /= x_MD.std(dim=0)
    return x_MD, code_M


def measure(problem: Problem, *, n_rounds: int, patience: float) -> dict[str, Any]:
    """Tolerances that reach the goal, then the times of the sides in turns."""
    ours = next(tolerance for tolerance in OUR_TOLERANCES if _ours(problem, tolerance) <= NEAR)
    reached = {}
    solvers = ["lbfgs", "newton-cg"]
    if problem.train_MD.shape[1] * problem.n_classes <= MOST_OF_CHOLESKY:
        solvers.append("newton-cholesky")
    for solver in solvers:
        limit = min([patience, *(2 * seconds for seconds, _ in reached.values())])
        found = loosest(problem, solver, patience=limit)
        if found is not None:
            reached[solver] = found
    figures = {"our_tolerance": ours, "theirs_is_a_bound": not reached, "optimum": problem.least}
    sides = {"ours": (lambda: _ours(problem, ours, checked=False), 1)}
    solver, tolerance = "lbfgs", float("nan")
    if reached:
        solver = min(reached, key=lambda name: reached[name][0])
        tolerance = reached[solver][1]
        sides["theirs"] = (lambda: _theirs(problem, solver, tolerance), 1)
    rates = take_turns(sides, rounds=n_rounds)
    theirs_s = 1 / rates["theirs"].per_s if reached else patience
    return figures | {
        "solver": solver,
        "their_tolerance": tolerance,
        "ours_s": 1 / rates["ours"].per_s,
        "theirs_s": theirs_s,
    }


def loosest(problem: Problem, solver: str, *, patience: float) -> tuple[float, float] | None:
    """Seconds and tolerance of the first fit that comes near; None if one takes too long."""
    for tolerance in THEIR_TOLERANCES:
        started = time.perf_counter()
        try:
            model = _theirs(problem, solver, tolerance, patience=patience)
        except TooLongError:
            return None
        seconds = time.perf_counter() - started
        if problem.gap(model.coef_, model.intercept_) <= NEAR:
            return seconds, tolerance
    return None


def _ours(problem: Problem, tolerance: float, *, checked: bool = True) -> float:
    found = minimise(problem.objective(torch.float32), tolerance=tolerance).parameter_CE
    return problem.gap(found[:, :-1], found[:, -1]) if checked else np.nan


def _theirs(
    problem: Problem, solver: str, tolerance: float, *, patience: float | None = None
) -> LogisticRegression:
    model = LogisticRegression(C=problem.cost, solver=solver, tol=tolerance, max_iter=100_000)
    if patience is None:
        return model.fit(problem.array_MD, problem.label_M)
    ends = time.perf_counter() + patience
    loss = linear_loss.LinearModelLoss
    kept = loss.loss_gradient

    def until(*args: Any, **settings: Any) -> Any:  # noqa: ANN401
        if time.perf_counter() > ends:
            raise TooLongError
        return kept(*args, **settings)

    loss.loss_gradient = until
    try:
        return model.fit(problem.array_MD, problem.label_M)
    finally:
        loss.loss_gradient = kept


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        msg = f"{path} cannot be imported"
        raise SystemExit(msg)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
