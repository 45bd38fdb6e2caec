"""Ridge regression of many targets, such as genes, on the main directions of embeddings."""

# Shape suffixes: M train rows, N test rows, D embedding width, T targets, A strengths, F folds,
# P coordinates, K components.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anlage.probes.checks import Rows, all_rows_equal, embedding_tensor, labels_of, same_width
from anlage.probes.regression.moments import Moments, moments_of_folds
from anlage.probes.regression.principal import (
    BLOCK_ROWS,
    Coordinates,
    checked_components,
    coordinates,
    main_directions,
)
from anlage.probes.splits.grouped import grouped_folds

ALPHAS = tuple(float(alpha) for alpha in np.logspace(-2, 7, 19))
HEST_COMPONENTS = 256


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RidgeHead:
    """A trained linear regression.

    Attributes:
        weight_TD: (T, D) float64 on embeddings less ``mean_D``; scaling and PCA are in it.
        bias_T: (T,) float64, the mean of the train targets; zeros without an intercept.
        mean_D: (D,) float64 mean of the train rows.
        alpha_T: (T,) strength of the penalty that each target was fitted with.
        n_components: Principal components used.
        has_one_target: The target came as (M,); predictions are (N,).
        alpha_A: (A,) strengths tried; empty where it was given.
        error_AT: (A, T) squared error on the left-out folds of the train side over that of the
            mean: 1 for a probe that says nothing; NaN for a constant target. (0, T) where alpha
            was given.
    """

    weight_TD: Tensor
    bias_T: Tensor
    mean_D: Tensor
    alpha_T: NDArray[np.float64]
    n_components: int
    has_one_target: bool
    alpha_A: NDArray[np.float64]
    error_AT: NDArray[np.float64]

    @property
    def is_at_edge(self) -> bool:
        """Whether a chosen alpha is the least or largest tried: widen the grid then."""
        return bool(len(self.alpha_A)) and bool(
            np.isin(self.alpha_T, (self.alpha_A.min(), self.alpha_A.max())).any()
        )

    def predict(self, test_ND: Rows) -> NDArray[np.float64]:
        """(N, T) predicted targets, or (N,) of a single one; 8,192 rows at a time in float64.

        Raises:
            ValueError: If the array is unusable or of another width.
        """
        device = self.weight_TD.device
        test = embedding_tensor("RidgeHead", "test", test_ND, device=device, dtype=torch.float64)
        same_width("RidgeHead", self.weight_TD, test)
        blocks = [
            (block - self.mean_D) @ self.weight_TD.T + self.bias_T
            for block in torch.split(test, BLOCK_ROWS)
        ]
        predicted: NDArray[np.float64] = torch.cat(blocks).cpu().numpy()
        return predicted[:, 0] if self.has_one_target else predicted


def ridge_probe(
    train_MD: Rows,
    target_MT: Rows,
    *,
    alpha: float,
    n_components: int | None = None,
    standardise: bool = True,
    device: torch.device | str | None = None,
) -> RidgeHead:
    """Targets by ridge regression with a given penalty, after PCA where asked.

        minimise |y - b - z W|^2 + alpha |W|^2,   z: standardised rows along their components

    In closed form, exact to float64 rounding: one eigendecomposition of a square of side
    min(M, D). Memory: the rows in float64 twice, and twice more where there are fewer rows than
    features.

    Args:
        train_MD: (M, D) embeddings of the train side.
        target_MT: (M, T) numbers, or (M,) for one target. A constant one is predicted as itself.
        alpha: Strength of the penalty, >= 0, in squared units of a standardised row; with 0, and in
            directions without spread, the least weights that fit.
        n_components: Principal components to keep, 1 to min(M, D); None for all (no PCA).
        standardise: Divide features by their deviation first; a constant one is only centred.
        device: Where to compute; by default where a tensor is, and the CPU for an array.

    Raises:
        ValueError: If an array is unusable, no feature or no target varies, there are fewer rows
            or features than components, or alpha is negative.
    """
    rows, target = _checked("ridge_probe", train_MD, target_MT, device)
    checked_components("ridge_probe", n_components, (rows.shape[0], rows.shape[1]))
    _checked_alphas("ridge_probe", [alpha], least=0.0)
    given = np.full(target.shape[1], float(alpha))
    head = _fitted(coordinates(rows, standardise=standardise), target, given, n_components)
    return replace(head, has_one_target=_is_one(target_MT))


def ridge_probe_hest(
    train_MD: Rows,
    target_MT: Rows,
    *,
    n_components: int = HEST_COMPONENTS,
    device: torch.device | str | None = None,
) -> RidgeHead:
    """HEST-Bench's probe of gene expression: PCA-256, ridge, alpha = 100 / (256 * T), no intercept.

    Features are standardised, then reduced by PCA, both fitted on the train side. Components have
    mean zero there, so the missing intercept changes no weight: only the level of each prediction,
    which Pearson's correlation (their score) does not see and R2 and errors do.

    Args:
        train_MD: (M, D) embeddings of the train side, M and D at least 256.
        target_MT: (M, T) log expression of T genes (50 in HEST-Bench).
        n_components: 256. Narrower embeddings need less; the result is then not HEST-Bench's.
        device: Where to compute; by default where a tensor is, and the CPU for an array.

    Raises:
        ValueError: As ``ridge_probe``.

    Source: Jaume et al. 2024, HEST-1k, arXiv:2406.16192, and its code at afd42c3 with dimreduce
    "PCA" (commented out in its own example configuration, HEST#50; the table A13 of the paper has
    no PCA, HEST#144). Differences: their PCA may be scikit-learn's randomised one and their solver
    is LSQR stopped at a tolerance of 1e-4; ours is the exact solution of both. This alpha, 0.0078
    for 50 genes, hardly regularises (HEST#140): see ``ridge_probe_tuned``.
    """
    rows, target = _checked("ridge_probe_hest", train_MD, target_MT, device)
    checked_components("ridge_probe_hest", n_components, (rows.shape[0], rows.shape[1]))
    n_targets = target.shape[1]
    alpha_T = np.full(n_targets, 100 / (n_components * n_targets))
    head = _fitted(coordinates(rows, standardise=True), target, alpha_T, n_components)
    return replace(head, bias_T=torch.zeros_like(head.bias_T), has_one_target=_is_one(target_MT))


def ridge_probe_tuned(
    train_MD: Rows,
    target_MT: Rows,
    group_M: Rows,
    *,
    alphas: Sequence[float] = ALPHAS,
    n_folds: int = 5,
    seed: int = 0,
    n_components: int | None = HEST_COMPONENTS,
    one_alpha: bool = True,
    standardise: bool = True,
    device: torch.device | str | None = None,
) -> RidgeHead:
    """Ridge regression whose penalty is chosen on folds of whole patients of the train side.

    In each fold PCA and all strengths come from one eigendecomposition, errors from second moments:
    no row is visited again. Features are scaled once, by the whole train side. Memory: as
    ``ridge_probe``, and n_folds + 3 squares of side min(M, D).

    Args:
        train_MD: (M, D) embeddings of the train side.
        target_MT: (M, T) numbers, or (M,).
        group_M: (M,) patient of each row.
        alphas: Strengths to try, > 0, rising.
        n_folds: 2 to the number of patients.
        seed: Of the dealing of patients into folds.
        n_components: Principal components to keep; None for all. Clamped to the lesser of D and the
            rows of the smallest train part, which ``RidgeHead.n_components`` tells.
        one_alpha: One strength for all targets, of least mean relative error; False: one for each.
        standardise: Divide features by their deviation first.
        device: Where to compute; by default where a tensor is, and the CPU for an array.

    Raises:
        ValueError: As ``ridge_probe``, or if there are fewer patients than folds, or alphas are not
            positive and rising.

    Source: ours; the wish is HEST#140, where a tuned alpha lifts UNI2-h from .408 to .434.
    """
    who = "ridge_probe_tuned"
    rows, target = _checked(who, train_MD, target_MT, device)
    group = labels_of(who, "groups", group_M, n_rows=len(rows))
    _checked_alphas(who, alphas, least=np.nextafter(0, 1))
    folds = grouped_folds(np.zeros(len(rows)), group, n_folds=n_folds, seed=seed)
    if n_components is not None:
        least = min(len(fold.train) for fold in folds)
        checked_components(who, min(n_components, rows.shape[1], least), (least, rows.shape[1]))
        n_components = min(n_components, rows.shape[1], least)
    where = coordinates(rows, standardise=standardise)
    fold_M = np.empty(len(rows), dtype=np.int64)
    for number, fold in enumerate(folds):
        fold_M[fold.test] = number
    parts = moments_of_folds(where.row_MP, target - target.mean(dim=0), fold_M)
    error_AT = _fold_errors(parts, alphas, n_components)
    error_AT[:, (target == target[:1]).all(dim=0).cpu().numpy()] = np.nan  # not to rounding
    varies_T = ~np.isnan(error_AT[0])
    mean_A = error_AT[:, varies_T].mean(axis=1)
    best_T = np.full(error_AT.shape[1], mean_A.argmin())
    if not one_alpha:
        best_T[varies_T] = error_AT[:, varies_T].argmin(axis=0)
    alpha_A = np.array(alphas, dtype=np.float64)
    head = _fitted(where, target, alpha_A[best_T], n_components)
    return replace(head, has_one_target=_is_one(target_MT), alpha_A=alpha_A, error_AT=error_AT)


def _checked(
    who: str, train_MD: Rows, target_MT: Rows, device: torch.device | str | None
) -> tuple[Tensor, Tensor]:
    rows = embedding_tensor(who, "train", train_MD, device=device, dtype=torch.float64)
    column = target_MT if isinstance(target_MT, Tensor) else np.asarray(target_MT)
    target = embedding_tensor(
        who,
        "target",
        column[:, None] if column.ndim == 1 else column,
        device=rows.device,
        dtype=torch.float64,
    )
    if len(target) != len(rows):
        msg = (
            f"{who}: target needs one row for each of {len(rows)} train rows; got {len(target)}. "
            "Check that rows were dropped from both or from neither."
        )
        raise ValueError(msg)
    for name, values in (("train", rows), ("target", target)):
        if all_rows_equal(values):
            msg = (
                f"{who}: {name} needs a column that varies; got {len(values)} equal rows of width "
                f"{values.shape[1]}. Look for a collapsed encoder or an empty panel of targets."
            )
            raise ValueError(msg)
    return rows, target


def _is_one(target_MT: Rows) -> bool:
    return len(target_MT.shape if isinstance(target_MT, Tensor) else np.shape(target_MT)) == 1


def _checked_alphas(who: str, alphas: Sequence[float], *, least: float) -> None:
    given = np.array(alphas, dtype=np.float64)
    is_rising = bool((np.diff(given) > 0).all())
    if not (given.size and np.isfinite(given).all() and given.min() >= least and is_rising):
        msg = (
            f"{who}: alpha needs to be finite, {'>= 0' if least == 0 else '> 0, and rising'}; got "
            f"{np.array2string(given, threshold=6)}. Try 1 to 100,000 on a logarithmic scale."
        )
        raise ValueError(msg)


def _fitted(
    where: Coordinates, target_MT: Tensor, alpha_T: NDArray[np.float64], n_components: int | None
) -> RidgeHead:
    bias_T = target_MT.mean(dim=0)
    square_K, direction_PK = main_directions(where.row_MP.T @ where.row_MP, n_components)
    product_KT = direction_PK.T @ (where.row_MP.T @ (target_MT - bias_T))
    alpha = torch.from_numpy(alpha_T).to(bias_T.device)
    weight_PT = direction_PK @ (product_KT / (square_K[:, None] + alpha))
    return RidgeHead(
        weight_TD=where.in_features(weight_PT).T.contiguous(),
        bias_T=bias_T,
        mean_D=where.mean_D,
        alpha_T=alpha_T,
        n_components=len(square_K),
        has_one_target=False,
        alpha_A=np.empty(0),
        error_AT=np.empty((0, len(alpha_T))),
    )


def _fold_errors(
    folds: list[Moments], alphas: Sequence[float], n_components: int | None
) -> NDArray[np.float64]:
    """(A, T) squared error on left-out folds over that of the overall mean."""
    total = Moments.sum_of(folds)
    error_AT = total.square_T.new_zeros((len(alphas), len(total.square_T)))
    for fold in folds:
        kept = total.less(fold)
        mean_P, mean_T = kept.row_P / kept.count, kept.target_T / kept.count
        fitted, judged = kept.around(mean_P, mean_T), fold.around(mean_P, mean_T)
        square_K, direction_PK = main_directions(fitted.gram_PP, n_components)
        product_KT = direction_PK.T @ fitted.product_PT
        seen_KT = direction_PK.T @ judged.product_PT
        seen_KK = direction_PK.T @ judged.gram_PP @ direction_PK
        for place, alpha in enumerate(alphas):
            weight_KT = product_KT / (square_K[:, None] + alpha)
            gap_KT = seen_KK @ weight_KT - 2 * seen_KT
            error_AT[place] += judged.square_T + (weight_KT * gap_KT).sum(dim=0)
    errors: NDArray[np.float64] = (error_AT / total.square_T).cpu().numpy()
    return errors
