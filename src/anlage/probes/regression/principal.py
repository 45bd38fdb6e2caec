"""Standardised embeddings in as few coordinates as they have, and along their main directions."""

# Shape suffixes: M train rows, D embedding width, P coordinates (at most min(M, D)), K components.

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK_ROWS = 8192
NULL = 1e-13


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Coordinates:
    """Train rows as coordinates of the space they span; penalised fits are the same in both.

    Attributes:
        row_MP: (M, P) float64 rows, of mean zero; P = D, or M where there are fewer rows than D.
        mean_D: (D,) mean of the train rows.
        scale_D: (D,) their deviations, 1 where constant; ones where nothing is to be scaled.
        span_DP: (D, P) orthonormal columns with standardised = coordinates @ span.T; None for D.
    """

    row_MP: Tensor
    mean_D: Tensor
    scale_D: Tensor
    span_DP: Tensor | None

    def in_features(self, weight_PT: Tensor) -> Tensor:
        """(D, T) weights on centred, unscaled embeddings that equal weights on coordinates."""
        weight_DT = weight_PT if self.span_DP is None else self.span_DP @ weight_PT
        return weight_DT / self.scale_D[:, None]


def coordinates(train_MD: Tensor, *, standardise: bool) -> Coordinates:
    """Centre, scale, and drop the coordinates in which no row can differ.

    Args:
        train_MD: (M, D) finite float64 rows.
        standardise: Divide each feature by its deviation (of M, as scikit-learn's scaler).
    """
    deviation_D, mean_D = torch.std_mean(train_MD, dim=0, correction=0)
    largest_D = train_MD.abs().amax(dim=0)
    varies_D = deviation_D > 1e-12 * largest_D
    one_D = torch.ones_like(mean_D)
    scale_D = torch.where(varies_D, deviation_D, one_D) if standardise else one_D
    row_MD = (train_MD - mean_D).mul_(varies_D).div_(scale_D)
    if row_MD.shape[0] >= row_MD.shape[1]:
        return Coordinates(row_MP=row_MD, mean_D=mean_D, scale_D=scale_D, span_DP=None)
    span_DP, upper_PM = torch.linalg.qr(row_MD.T)
    return Coordinates(
        row_MP=upper_PM.T.contiguous(), mean_D=mean_D, scale_D=scale_D, span_DP=span_DP
    )


def main_directions(gram_PP: Tensor, n_components: int | None) -> tuple[Tensor, Tensor]:
    """The largest principal components of rows with this centred Gram matrix.

    Args:
        gram_PP: (P, P) float64 sum over rows of their outer products.
        n_components: How many to keep at most; None for all.

    Returns:
        square_K: (K,) squared singular values of the rows, falling. Those below 1e-13 of the first
            are rounding and left out.
        direction_PK: (P, K) orthonormal columns.
    """
    square_P, direction_PP = torch.linalg.eigh(gram_PP)
    square_P, direction_PP = square_P.flip(0), direction_PP.flip(1)
    n_real = int((square_P > NULL * square_P[0]).sum())
    n_kept = n_real if n_components is None else min(n_components, n_real)
    return square_P[:n_kept], direction_PP[:, :n_kept]


def checked_components(who: str, n_components: int | None, shape: tuple[int, int]) -> None:
    """Refuse more components than the rows can have.

    Raises:
        ValueError: If there are fewer rows or features.
    """
    most = min(shape)
    if n_components is not None and not 1 <= n_components <= most:
        msg = (
            f"{who}: n_components needs to be 1 to {most}, the lesser of {shape[0]} train rows and "
            f"{shape[1]} features; got {n_components}. Pass a smaller n_components, and say so."
        )
        raise ValueError(msg)
