"""Sums of products of rows and targets, which folds can be added to and taken from."""

# Shape suffixes: M rows, P coordinates, T targets.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Moments:
    """All that least squares needs to know of some rows.

    Attributes:
        count: Rows.
        row_P: (P,) sum of rows.
        target_T: (T,) sum of targets.
        gram_PP: (P, P) sum of outer products of rows.
        product_PT: (P, T) sum of outer products of rows and targets.
        square_T: (T,) sum of squared targets.
    """

    count: float
    row_P: Tensor
    target_T: Tensor
    gram_PP: Tensor
    product_PT: Tensor
    square_T: Tensor

    @staticmethod
    def sum_of(parts: Sequence[Moments]) -> Moments:
        """Of the rows of all parts."""
        return Moments(
            count=sum(part.count for part in parts),
            row_P=torch.stack([part.row_P for part in parts]).sum(dim=0),
            target_T=torch.stack([part.target_T for part in parts]).sum(dim=0),
            gram_PP=sum((part.gram_PP for part in parts[1:]), start=parts[0].gram_PP),
            product_PT=sum((part.product_PT for part in parts[1:]), start=parts[0].product_PT),
            square_T=torch.stack([part.square_T for part in parts]).sum(dim=0),
        )

    def less(self, part: Moments) -> Moments:
        """Of the rows that are not in a part."""
        return Moments(
            count=self.count - part.count,
            row_P=self.row_P - part.row_P,
            target_T=self.target_T - part.target_T,
            gram_PP=self.gram_PP - part.gram_PP,
            product_PT=self.product_PT - part.product_PT,
            square_T=self.square_T - part.square_T,
        )

    def around(self, mean_P: Tensor, mean_T: Tensor) -> Moments:
        """Of the same rows and targets less these means."""
        crossed_PP = torch.outer(self.row_P, mean_P)
        inner_PT = torch.outer(self.row_P, mean_T) + torch.outer(mean_P, self.target_T)
        n_mean_P = self.count * mean_P
        return Moments(
            count=self.count,
            row_P=self.row_P - n_mean_P,
            target_T=self.target_T - self.count * mean_T,
            gram_PP=self.gram_PP - crossed_PP - crossed_PP.T + torch.outer(n_mean_P, mean_P),
            product_PT=self.product_PT - inner_PT + torch.outer(n_mean_P, mean_T),
            square_T=self.square_T - 2 * mean_T * self.target_T + self.count * mean_T**2,
        )


def moments_of_folds(row_MP: Tensor, target_MT: Tensor, fold_M: NDArray[np.int64]) -> list[Moments]:
    """Moments of each fold, 0 to the largest.

    Args:
        row_MP: (M, P) float64 rows, near mean zero, so that differences of sums keep their digits.
        target_MT: (M, T) float64 targets, near mean zero.
        fold_M: (M,) fold of each row; each has a row.
    """
    folds = []
    for number in range(int(fold_M.max()) + 1):
        place = torch.from_numpy(np.flatnonzero(fold_M == number)).to(row_MP.device)
        row, target = row_MP[place], target_MT[place]
        folds.append(
            Moments(
                count=float(len(place)),
                row_P=row.sum(dim=0),
                target_T=target.sum(dim=0),
                gram_PP=row.T @ row,
                product_PT=row.T @ target,
                square_T=target.square().sum(dim=0),
            )
        )
    return folds
