"""Class prototypes, means of normalised embeddings, and the probe that takes the nearest."""

# Shape suffixes: N test rows, M train rows, D embedding width, C classes.

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from anlage.probes.checks import Rows, embedding_tensor, same_width, train_side
from anlage.probes.precision import float32_products
from anlage.probes.prediction import Prediction

BLOCK_ROWS = 8192


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prototypes:
    """Class vectors, and the mean that embeddings are centred with before they are compared.

    Attributes:
        vector_CD: (C, D) float32: means of vectors of length 1, so shorter than 1 themselves.
        mean_D: (D,) float32 mean of the train side.
        class_C: (C,) labels, sorted.
    """

    vector_CD: Tensor
    mean_D: Tensor
    class_C: NDArray[Any]

    def squared_distances(self, embedding_ND: Tensor) -> Tensor:
        """(N, C) float32 squared Euclidean distances of centred rows of length 1, 0 to 4."""
        with float32_products(self.vector_CD.device):
            unit_ND = unit_rows(embedding_ND - self.mean_D)
            square_N1 = unit_ND.square().sum(dim=1, keepdim=True)  # 1, or 0 for the mean itself
            square_C = self.vector_CD.square().sum(dim=1)
            return (square_N1 - 2 * unit_ND @ self.vector_CD.T + square_C).clamp_min_(0)

    def predict(self, test_ND: Rows) -> Prediction:
        """The class of the nearest prototype; 8,192 rows at a time.

        The score is the softmax over classes of the negative squared distances (Snell et al. 2017,
        arXiv:1703.05175, equation 2): ours, and not calibrated; SimpleShot has none. An exact tie
        goes to the class that sorts first.

        Raises:
            ValueError: If the array is unusable or of another width.
        """
        test = embedding_tensor("Prototypes", "test", test_ND, device=self.vector_CD.device)
        same_width("Prototypes", self.vector_CD, test)
        distance_NC = torch.cat(
            [self.squared_distances(block) for block in torch.split(test, BLOCK_ROWS)]
        ).double()
        return Prediction(
            label_N=self.class_C[distance_NC.argmin(dim=1).cpu().numpy()],
            score_NC=torch.softmax(-distance_NC, dim=1).cpu().numpy(),
            class_C=self.class_C,
        )


def prototypes(
    train_MD: Rows, train_label_M: Rows, *, device: torch.device | str | None = None
) -> Prototypes:
    """Mean of the centred, L2-normalised embeddings of each class; not normalised again.

    Centred with the mean of all train rows. Sums in float64, 8,192 rows at a time.

    Args:
        train_MD: (M, D) embeddings of the train side.
        train_label_M: (M,) their labels.
        device: Where to compute; by default where ``train_MD`` is.

    Raises:
        ValueError: If an array is unusable, there is one class only, or no feature varies.

    Source: Wang et al. 2019, SimpleShot, arXiv:1911.04623 (CL2N); Chen et al. 2024, UNI,
    arXiv:2308.15474, Methods.
    """
    train, class_C, code_M = train_side("prototypes", train_MD, train_label_M, device=device)
    blocks = torch.split(train, BLOCK_ROWS)
    sum_D = sum((block.double().sum(dim=0) for block in blocks), train.new_zeros(1).double())
    mean_D = (sum_D / len(train)).float()
    sum_CD = torch.zeros(len(class_C), train.shape[1], dtype=torch.float64, device=train.device)
    for block, code in zip(blocks, torch.split(code_M, BLOCK_ROWS), strict=True):
        sum_CD.index_add_(0, code, unit_rows(block - mean_D).double())
    n_rows_C = torch.bincount(code_M, minlength=len(class_C))
    vector_CD = (sum_CD / n_rows_C[:, None]).float()
    return Prototypes(vector_CD=vector_CD, mean_D=mean_D, class_C=class_C)


def prototype_probe(
    train_MD: Rows, train_label_M: Rows, test_ND: Rows, *, device: torch.device | str | None = None
) -> Prediction:
    """Class of each test row by its nearest prototype: SimpleShot with the whole train side.

    Raises:
        ValueError: As ``prototypes`` and ``Prototypes.predict``.
    """
    return prototypes(train_MD, train_label_M, device=device).predict(test_ND)


def unit_rows(rows_ND: Tensor) -> Tensor:
    """Rows divided by their lengths, whatever their scale; a zero row stays zero."""
    tiny = torch.finfo(rows_ND.dtype).tiny
    scaled_ND = rows_ND / rows_ND.abs().amax(dim=1, keepdim=True).clamp_min(tiny)
    length_N1 = torch.linalg.vector_norm(scaled_ND, dim=1, keepdim=True)
    return scaled_ND.div_(length_N1.clamp_min_(tiny))
