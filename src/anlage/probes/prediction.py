"""What a classifier probe gives back: predicted classes, and the linear head that made them."""

# Shape suffixes: N test rows, D embedding width, C classes.

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anlage.probes.checks import Rows, embedding_tensor, same_width
from anlage.probes.precision import float32_products

BLOCK_ROWS = 8192


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prediction:
    """Predicted classes of the test rows.

    Attributes:
        label_N: (N,) predicted label of each row, one of ``class_C``.
        score_NC: (N, C) float64, each row sums to 1: probabilities of the linear probes, shares of
            the votes of the kNN probe.
        class_C: (C,) labels of the train side, sorted.
        has_converged: False when the solver stopped at its last iteration.
    """

    label_N: NDArray[Any]
    score_NC: NDArray[np.float64]
    class_C: NDArray[Any]
    has_converged: bool = True


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LinearHead:
    """A trained linear classifier, and the standardisation that goes before it.

    Attributes:
        weight_CD: (C, D), float32 unless float64 was asked for, on the device it was trained on;
            acts on standardised embeddings.
        bias_C: (C,) of the same dtype.
        mean_D: (D,) subtracted from embeddings first; zeros where the protocol does not centre.
        scale_D: (D,) that they are then divided by; ones where the protocol does not scale.
        class_C: (C,) labels of the train side, sorted.
        has_converged: False when the solver stopped at its last iteration.
        note: What to know of its training: seed, step, cost; may be empty.
    """

    weight_CD: Tensor
    bias_C: Tensor
    mean_D: Tensor
    scale_D: Tensor
    class_C: NDArray[Any]
    has_converged: bool = True
    note: str = ""

    def logits(self, test_ND: Rows) -> NDArray[np.float64]:
        """(N, C) logits of the rows; 8,192 rows at a time, without TF32 or autocast.

        Raises:
            ValueError: If the array is unusable or of another width.
        """
        weight = self.weight_CD
        test = embedding_tensor(
            "LinearHead", "test", test_ND, device=weight.device, dtype=weight.dtype
        )
        same_width("LinearHead", weight, test)
        with float32_products(weight.device):
            blocks = [
                ((block - self.mean_D) / self.scale_D) @ weight.T + self.bias_C
                for block in torch.split(test, BLOCK_ROWS)
            ]
        logits: NDArray[np.float64] = torch.cat(blocks).double().cpu().numpy()
        return logits

    def predict(self, test_ND: Rows) -> Prediction:
        """Classes of the rows, with softmax probabilities.

        Raises:
            ValueError: If the array is unusable or of another width.
        """
        logits_NC = self.logits(test_ND)
        return Prediction(
            label_N=self.class_C[logits_NC.argmax(axis=1)],
            score_NC=torch.softmax(torch.from_numpy(logits_NC), dim=1).numpy(),
            class_C=self.class_C,
            has_converged=self.has_converged,
        )
