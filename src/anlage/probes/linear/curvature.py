"""The Hessian of a softmax regression, from a sample of rows, in a form that can be solved."""

# Shape suffixes: M rows, K sampled rows, D embedding width, E = D + 1 (the bias last), C classes,
# Q directions in which the Hessian is exact.

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anlage.probes.linear.objective import SoftmaxObjective

EXACT_PARAMETERS = 640
SAMPLE_PER_WIDTH = (5, 12)
FEWEST_SAMPLED = 8192
GRAM_PARTS = 4
SEED = 20240827


def sample_rows(n_rows: int, n_wanted: int, *, device: torch.device) -> Tensor:
    """(K,) rows drawn without replacement, rising, the same for the same numbers."""
    if n_wanted >= n_rows:
        return torch.arange(n_rows, device=device)
    order = torch.randperm(n_rows, generator=torch.Generator().manual_seed(SEED))
    return order[:n_wanted].sort().values.to(device)


def sample_size(n_rows: int, width: int, n_classes: int) -> int:
    """Rows whose Gram matrix takes about as long as one or two evaluations of the objective."""
    fewest, most = (times * width for times in SAMPLE_PER_WIDTH)
    balanced = 12 * n_rows * n_classes // width
    return max(FEWEST_SAMPLED, min(most, max(fewest, balanced)))


class Curvature:
    """Sampled rows of an objective and their Gram matrix; gives a ``Preconditioner`` anywhere.

    Memory: the sample, (K, E), K at most 12 * D or 8,192, and two (E, E) float64 matrices.
    """

    def __init__(self, objective: SoftmaxObjective) -> None:
        n_rows, width = objective.train_MD.shape
        row_K = sample_rows(
            n_rows, sample_size(n_rows, width, objective.n_classes), device=objective.code_M.device
        )
        self.x_KE = objective.train_MD.new_ones(len(row_K), width + 1)
        self.x_KE[:, :-1] = objective.standardised(row_K)
        weight_K = objective.weight_M[row_K]
        self.is_whole = len(row_K) == n_rows
        factor = float(objective.weight_M.double().sum() / weight_K.double().sum())
        self.share_K = weight_K * factor
        if bool((self.share_K == self.share_K[0]).all()):
            self.gram_EE = _gram(self.x_KE).double() * float(self.share_K[0])
        else:
            self.gram_EE = _gram(self.x_KE * self.share_K.sqrt()[:, None]).double()
        self._factored: tuple[float, Tensor] | None = None

    def at(self, parameter_CE: Tensor, *, penalty: float, cost: float = 1.0) -> Preconditioner:
        """The Hessian at these parameters, for the objective's row weights times ``cost``."""
        share_K = self.share_K.double() * cost
        p_KC = torch.softmax(self.x_KE @ parameter_CE.T.to(self.x_KE.dtype), dim=1).double()
        inner_CC = _class_coupling(p_KC, share_K)
        value_C, vector_CC = torch.linalg.eigh(inner_CC / share_K.sum())
        value_C = value_C.clamp_min(float(value_C[-1]) * 1e-4)
        value_C[0] = value_C[1:].mean()  # one shift of all classes changes nothing
        mean = float(value_C.mean())
        root_EE = self._root(penalty / (cost * mean))
        basis_EQ = self._basis(parameter_CE, root_EE)
        exact = self._exact(basis_EQ, p_KC, share_K, penalty)
        return Preconditioner(
            root_EE=root_EE,
            scale=cost * mean,
            vector_CC=vector_CC,
            share_C=mean / value_C,
            basis_EQ=basis_EQ,
            exact_root=exact,
            is_hessian=self.is_whole and basis_EQ.shape[0] == basis_EQ.shape[1],
        )

    def _root(self, ridge: float) -> Tensor:
        """Cholesky factor of Gram + ridge, kept while the ridge stays within a factor of two."""
        if self._factored is not None:
            old_ridge, root_EE = self._factored
            if old_ridge / 2 <= ridge <= old_ridge * 2:
                return root_EE
        matrix_EE = self.gram_EE.clone()
        diagonal_E = matrix_EE.diagonal()
        trace = float(diagonal_E.sum())
        diagonal_E[:-1] += ridge
        root_EE = _cholesky(matrix_EE, jitter=torch.finfo(self.x_KE.dtype).eps * trace)
        self._factored = (ridge, root_EE)
        return root_EE

    def _basis(self, parameter_CE: Tensor, root_EE: Tensor) -> Tensor:
        """(E, Q) directions that the weights act in, orthonormal in the Gram metric."""
        n_classes, n_parameters = parameter_CE.shape
        width = n_parameters - 1
        if n_parameters * n_classes <= EXACT_PARAMETERS:
            start_EQ = torch.eye(n_parameters, dtype=torch.float64, device=parameter_CE.device)
        else:
            n_kept = max(1, min(EXACT_PARAMETERS // n_classes - 1, n_classes - 1))
            weight_CD = parameter_CE[:, :-1] - parameter_CE[:, :-1].mean(dim=0)
            _, value, row_CD = torch.linalg.svd(weight_CD @ root_EE[:-1, :-1], full_matrices=False)
            kept = row_CD[:n_kept][value[:n_kept] > 1e-6 * value[0]]
            kept_DQ = torch.linalg.solve_triangular(root_EE[:-1, :-1].T, kept.T, upper=True)
            start_EQ = kept_DQ.new_zeros(n_parameters, kept_DQ.shape[1] + 1)
            start_EQ[:-1, :-1] = kept_DQ
            start_EQ[width, -1] = 1.0
        orthonormal_EQ, _ = torch.linalg.qr(root_EE.T @ start_EQ)
        basis_EQ: Tensor = torch.linalg.solve_triangular(root_EE.T, orthonormal_EQ, upper=True)
        return basis_EQ

    def _exact(self, basis_EQ: Tensor, p_KC: Tensor, share_K: Tensor, penalty: float) -> Tensor:
        """Cholesky factor of the Hessian over (class, direction) pairs, (C * Q, C * Q)."""
        n_classes, n_directions = p_KC.shape[1], basis_EQ.shape[1]
        b_KQ = (self.x_KE @ basis_EQ.to(self.x_KE.dtype)).double()
        pair = torch.zeros(
            n_classes * n_directions,
            n_classes * n_directions,
            dtype=torch.float64,
            device=b_KQ.device,
        )
        blocks = pair.view(n_classes, n_directions, n_classes, n_directions)
        for p_BC, b_BQ, share_B in zip(
            torch.split(p_KC, 8192),
            torch.split(b_KQ, 8192),
            torch.split(share_K, 8192),
            strict=True,
        ):
            mixed = (p_BC[:, :, None] * (b_BQ * share_B.sqrt()[:, None])[:, None, :]).flatten(1)
            pair -= mixed.T @ mixed
            for c in range(n_classes):
                blocks[c, :, c] += (b_BQ * (p_BC[:, c] * share_B)[:, None]).T @ b_BQ
        ridge_QQ = penalty * basis_EQ[:-1].T @ basis_EQ[:-1]
        shift = float(pair.diagonal().mean()) / n_classes  # of all classes: changes no gradient
        for c in range(n_classes):
            blocks[c, :, c] += ridge_QQ
            blocks.diagonal(dim1=1, dim2=3)[c] += shift
        return _cholesky(pair, jitter=1e-12 * float(pair.diagonal().mean()))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Preconditioner:
    """An approximate Hessian P of (C, E) parameters that can be solved at once.

    In the Q directions of ``basis_EQ`` (those the weights act in, and the bias), for all classes,
    P is the Hessian itself. For Gaussian embeddings it is a product of Gram matrix and class
    coupling in every other direction (Stein's lemma), which is what P takes there.

    Attributes:
        root_EE: Cholesky factor of the Gram matrix + ridge.
        scale: P's factor beside it.
        vector_CC: Eigenvectors of the mean class coupling.
        share_C: Inverse eigenvalues, of mean about 1.
        basis_EQ: Directions, orthonormal in the metric of ``root_EE``.
        exact_root: Cholesky factor of the Hessian in these directions, classes outermost.
        is_hessian: Whether P is the objective's Hessian itself, in all directions and of all rows.
    """

    root_EE: Tensor
    scale: float
    vector_CC: Tensor
    share_C: Tensor
    basis_EQ: Tensor
    exact_root: Tensor
    is_hessian: bool

    def solve(self, gradient_CE: Tensor) -> Tensor:
        """(C, E) ``P^-1 gradient``, float64."""
        part_CQ = gradient_CE @ self.basis_EQ
        exact = torch.cholesky_solve(part_CQ.reshape(-1, 1), self.exact_root)
        solved_CE = exact.view_as(part_CQ) @ self.basis_EQ.T
        if self.basis_EQ.shape[0] == self.basis_EQ.shape[1]:
            return solved_CE
        rest_CE = torch.cholesky_solve(gradient_CE.T, self.root_EE).T - part_CQ @ self.basis_EQ.T
        mixed_CE = self.vector_CC @ (self.share_C[:, None] * (self.vector_CC.T @ rest_CE))
        return solved_CE + mixed_CE / self.scale


def _class_coupling(p_KC: Tensor, share_K: Tensor) -> Tensor:
    """(C, C) sum over rows of ``share * (diag(p) - p p^T)``."""
    weighted_KC = p_KC * share_K[:, None]
    return torch.diag(weighted_KC.sum(dim=0)) - weighted_KC.T @ p_KC


def _cholesky(matrix: Tensor, *, jitter: float) -> Tensor:
    """Lower factor; what is added to the diagonal, in place, grows until there is one."""
    while True:
        assert jitter < float("inf"), "a matrix that is not finite has no factor"
        matrix.diagonal().add_(jitter)
        root: Tensor
        root, failed = torch.linalg.cholesky_ex(matrix)
        if not bool(failed):
            return root
        jitter *= 10


def _gram(x_KE: Tensor) -> Tensor:
    """(E, E) ``X^T X``, the blocks below the diagonal only once."""
    width = x_KE.shape[1]
    n_part = -(-width // GRAM_PARTS)
    gram_EE = x_KE.new_empty(width, width)
    for start in range(0, width, n_part):
        part = slice(start, start + n_part)
        gram_EE[part, start:] = x_KE[:, part].T @ x_KE[:, start:]
        gram_EE[part.stop :, part] = gram_EE[part, part.stop :].T
    return gram_EE
