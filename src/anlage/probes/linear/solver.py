"""L-BFGS with a strong Wolfe line search on a preconditioner that knows the Hessian's form."""

# Shape suffixes: M rows, D embedding width, E = D + 1 (the bias last), C classes, R reduced width.

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anlage.probes.linear.curvature import Curvature, Preconditioner, sample_rows
from anlage.probes.linear.line_search import Point, line_search
from anlage.probes.linear.objective import SoftmaxObjective

TOLERANCE = {torch.float32: 1e-8, torch.float64: 1e-14}
AIM = 0.01
MAX_ITERATIONS = 500
MEMORY = 12
REFRESHED_AT = (2, 5)
REFRESHED_EVERY = 10
REDUCED_ROWS = 2**15
REDUCED_TOLERANCE = 1e-4
MOST_STALLED = 6


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Solution:
    """Where the solver stopped.

    Attributes:
        parameter_CE: (C, E) float64 weights and, last, the bias.
        value: Of the objective there.
        relative_gap: Predicted distance of ``value`` from the minimum, over ``value``.
        has_converged: Whether that is at most the tolerance.
        n_evaluations: Times the embeddings were read for a value and gradient.
    """

    parameter_CE: Tensor
    value: float
    relative_gap: float
    has_converged: bool
    n_evaluations: int


def minimise(
    objective: SoftmaxObjective,
    *,
    start_CE: Tensor | None = None,
    curvature: Curvature | None = None,
    cost: float = 1.0,
    tolerance: float | None = None,
    max_iterations: int = MAX_ITERATIONS,
) -> Solution:
    """The minimum of a convex, penalised softmax regression.

    Quasi-Newton steps: the inverse Hessian of L-BFGS starts from ``Preconditioner.solve``, rebuilt
    at the newest parameters now and then. Converged means that half the Newton decrement in that
    metric, ``g^T H^-1 g / 2``, which predicts how far the value lies above the minimum, is at most
    ``tolerance`` times the value; and nothing else does. The solver aims at a hundredth of that
    and stops short of it where rounding hides any progress. A small problem, whose Hessian the
    preconditioner holds whole, is solved by Newton steps.

    Args:
        objective: What to minimise.
        start_CE: (C, E) first parameters; found in the span of the first direction if None.
        curvature: Of this objective, kept from an earlier call; made here if None.
        cost: Factor of the objective's row weights over those that ``curvature`` was made of.
        tolerance: See above; 1e-8 in float32 and 1e-14 in float64 if None.
        max_iterations: Steps at most.
    """
    state = _State(objective, curvature or Curvature(objective), cost=cost)
    state.begin(start_CE)
    limit = TOLERANCE[objective.train_MD.dtype] if tolerance is None else tolerance
    gap = float("inf")
    for iteration in range(max_iterations):
        if state.refreshes(iteration):
            state.refresh()
        direction_CE, gap = state.direction()
        if gap <= AIM * limit:
            if state.is_fresh:
                break
            state.restart()  # not before the Hessian of these very parameters says so
        elif not state.advance(direction_CE, gap) and not state.restart():
            break
        if state.n_stalled >= MOST_STALLED:
            state.restart()
            gap = state.direction()[1]
            break
    return state.solution(gap, limit)


class _State:
    """Where the solver is, its memory of steps, and its preconditioner."""

    def __init__(self, objective: SoftmaxObjective, curvature: Curvature, *, cost: float) -> None:
        self.objective, self.curvature, self.cost = objective, curvature, cost
        self.steps: list[tuple[Tensor, Tensor, float]] = []
        self.n_evaluations = 0
        self.best_gap, self.best_value, self.n_stalled = float("inf"), float("inf"), 0
        self.noise = 4 * torch.finfo(objective.train_MD.dtype).eps
        self.point: Point
        self.preconditioner: Preconditioner
        self.is_fresh = False

    def evaluate(self, parameter_CE: Tensor) -> Point:
        self.n_evaluations += 1
        value, gradient_CE = self.objective(parameter_CE)
        return Point(parameter_CE, value, gradient_CE)

    def begin(self, start_CE: Tensor | None) -> None:
        if start_CE is not None:
            self.point = self.evaluate(start_CE)
            self.refresh()
            return
        self.point = self.evaluate(self.objective.prior())
        self.refresh()
        n_classes, n_parameters = start_shape = self.point.parameter_CE.shape
        if n_parameters > 2 * n_classes:
            direction_CE = self.preconditioner.solve(self.point.gradient_CE)
            started = self.evaluate(minimum_along(self.objective, direction_CE))
            if started.value < self.point.value:
                self.point = started
                self.refresh()
        assert self.point.parameter_CE.shape == start_shape

    def refreshes(self, iteration: int) -> bool:
        if self.is_fresh:
            return False
        if self.preconditioner.is_hessian:
            return True
        return iteration in REFRESHED_AT or iteration % REFRESHED_EVERY == REFRESHED_EVERY - 1

    def refresh(self) -> None:
        """The preconditioner of the newest parameters."""
        parameter_CE = self.point.parameter_CE
        penalty = self.objective.penalty.curvature(parameter_CE[:, :-1])
        self.preconditioner = self.curvature.at(parameter_CE, penalty=penalty, cost=self.cost)
        if self.preconditioner.is_hessian:
            self.steps = []
        self.is_fresh = True

    def restart(self) -> bool:
        """Forget the steps, at most once for each step that succeeds."""
        if not self.steps and self.is_fresh:
            return False
        self.steps = []
        self.refresh()
        return True

    def direction(self) -> tuple[Tensor, float]:
        """Quasi-Newton direction, and the predicted relative distance from the minimum."""
        gradient_CE = self.point.gradient_CE
        rest_CE = gradient_CE.clone()
        shares = []
        for step_CE, change_CE, product in reversed(self.steps):
            share = float((step_CE * rest_CE).sum()) / product
            rest_CE -= share * change_CE
            shares.append(share)
        direction_CE = self.preconditioner.solve(rest_CE)
        for (step_CE, change_CE, product), share in zip(self.steps, reversed(shares), strict=True):
            direction_CE += step_CE * (share - float((change_CE * direction_CE).sum()) / product)
        decrease = float((gradient_CE * direction_CE).sum())
        return -direction_CE, max(decrease, 0.0) / 2 / abs(self.point.value)

    def advance(self, direction_CE: Tensor, gap: float) -> bool:
        """One step; False if there is none."""
        found = line_search(self.evaluate, self.point, direction_CE, noise=self.noise)
        if found is None:
            return False
        old, self.point = self.point, found
        step_CE = found.parameter_CE - old.parameter_CE
        change_CE = found.gradient_CE - old.gradient_CE
        product = float((step_CE * change_CE).sum())
        if product > 0:
            self.steps = [*self.steps, (step_CE, change_CE, product)][-MEMORY:]
        self.is_fresh = False
        is_lower = found.value < self.best_value - self.noise * abs(found.value)
        is_nearer = gap < self.best_gap / 2
        self.n_stalled = 0 if is_lower or is_nearer else self.n_stalled + 1
        self.best_value = found.value if is_lower else self.best_value
        self.best_gap = gap if is_nearer else self.best_gap
        return True

    def solution(self, gap: float, limit: float) -> Solution:
        return Solution(
            parameter_CE=self.point.parameter_CE,
            value=self.point.value,
            relative_gap=gap,
            has_converged=gap <= limit,
            n_evaluations=self.n_evaluations,
        )


def minimum_along(objective: SoftmaxObjective, direction_CE: Tensor) -> Tensor:
    """(C, E) parameters whose weights lie in the span of a direction's rows, the best of them.

    The regression on embeddings projected to these C dimensions, solved on 32,768 rows at most.
    From zero weights the first direction is that of linear discriminant analysis.
    """
    basis_DR, _ = torch.linalg.qr(direction_CE[:, :-1].T)
    row_K, factor_K = _sample_of_all_classes(objective)
    used_DR = basis_DR.to(objective.train_MD.dtype)
    reduced = SoftmaxObjective(
        train_MD=torch.cat(
            [
                objective.standardised(rows) @ used_DR
                for rows in torch.split(row_K, objective.n_block)
            ]
        ),
        code_M=objective.code_M[row_K],
        weight_M=objective.weight_M[row_K] * factor_K,
        n_classes=objective.n_classes,
        penalty=objective.penalty,
    )
    small_CR = minimise(reduced, tolerance=REDUCED_TOLERANCE).parameter_CE
    return torch.cat([small_CR[:, :-1] @ basis_DR.T, small_CR[:, -1:]], dim=1)


def _sample_of_all_classes(objective: SoftmaxObjective) -> tuple[Tensor, Tensor]:
    """Rows, and how many rows each stands for; classes that the sample lacks come whole."""
    code_M, n_rows = objective.code_M, len(objective.code_M)
    row_K = sample_rows(n_rows, REDUCED_ROWS, device=code_M.device)
    factor_K = objective.weight_M.new_full((len(row_K),), n_rows / len(row_K))
    is_lacking_C = torch.bincount(code_M[row_K], minlength=objective.n_classes) == 0
    rest = is_lacking_C[code_M].nonzero()[:, 0]
    return torch.cat([row_K, rest]), torch.cat([factor_K, factor_K.new_ones(len(rest))])
