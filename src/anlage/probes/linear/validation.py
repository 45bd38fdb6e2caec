"""The validation side that chooses among the heads which a training passes through."""

# Shape suffixes: V validation rows, R heads, C classes, D embedding width.

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from anlage.probes.checks import Rows, embedding_tensor, labels_of
from anlage.probes.linear.stack import HeadStack


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ValidationSide:
    """Rows that are scored while heads are trained on others.

    Attributes:
        row_VD: (V, D) float32 embeddings.
        code_V: (V,) int64 classes, on the same device.
        n_classes: C, of the train side; a class may have no row here.
    """

    row_VD: Tensor
    code_V: Tensor
    n_classes: int

    def balanced_accuracy(self, stack: HeadStack) -> NDArray[np.float64]:
        """(R,) mean over the classes that have rows here of the share found."""
        recall_RC = self._counts(stack)[0] / self._n_rows()
        score_R: NDArray[np.float64] = np.nanmean(recall_RC, axis=1)
        return score_R

    def weighted_f1(self, stack: HeadStack) -> NDArray[np.float64]:
        """(R,) F1 of each class, weighted by its rows here."""
        hit_RC, predicted_RC = self._counts(stack)
        n_rows_C = np.nan_to_num(self._n_rows())
        f1_RC = 2 * hit_RC / np.maximum(predicted_RC + n_rows_C, 1)
        score_R: NDArray[np.float64] = f1_RC @ (n_rows_C / n_rows_C.sum())
        return score_R

    def minus_loss(self, stack: HeadStack) -> NDArray[np.float64]:
        """(R,) minus the mean cross-entropy, so that more is better; summed in float64."""
        total_R = torch.zeros(stack.n_heads, dtype=torch.float64, device=self.code_V.device)
        start = 0
        for logit_RCV in stack.logits(self.row_VD):
            code = self.code_V[start : start + logit_RCV.shape[2]].expand(stack.n_heads, -1)
            loss_RV = functional.cross_entropy(logit_RCV, code, reduction="none")
            total_R += loss_RV.sum(dim=1, dtype=torch.float64)
            start += logit_RCV.shape[2]
        return (-total_R / len(self.code_V)).cpu().numpy()

    def _n_rows(self) -> NDArray[np.float64]:
        count = torch.bincount(self.code_V, minlength=self.n_classes).cpu().numpy()
        return np.where(count > 0, count, np.nan)

    def _counts(self, stack: HeadStack) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(R, C) rows of each class that are found, and (R, C) rows that are given the class."""
        class_C = torch.arange(self.n_classes, device=self.code_V.device)
        hit_RC = torch.zeros(
            stack.n_heads, self.n_classes, dtype=torch.int64, device=class_C.device
        )
        predicted_RC = torch.zeros_like(hit_RC)
        start = 0
        for logit_RCV in stack.logits(self.row_VD):
            code_V = self.code_V[start : start + logit_RCV.shape[2]]
            found_RV = logit_RCV[:, 0] > 0 if stack.is_sigmoid else logit_RCV.argmax(dim=1)
            is_given_RCV = found_RV[:, None] == class_C[:, None]
            predicted_RC += is_given_RCV.sum(dim=2)
            hit_RC += (is_given_RCV & (code_V == class_C[:, None])).sum(dim=2)
            start += logit_RCV.shape[2]
        return hit_RC.cpu().numpy().astype(float), predicted_RC.cpu().numpy().astype(float)


class BestHeads:
    """The best weights of each head so far, by a score of which more is better.

    Equal scores keep the earlier weights. A head that has not improved for ``patience`` scores in
    a row is stopped: it takes no later weights.

    Attributes:
        weight_RCD: (R, C, D) weights of the best score.
        bias_RC: (R, C) biases.
        score_R: (R,) best score.
        step_R: (R,) int64, after how many steps it was reached.
    """

    def __init__(self, stack: HeadStack, *, patience: int | None) -> None:
        self.weight_RCD, self.bias_RC = stack.weight_RCD.clone(), stack.bias_RC.clone()
        self.score_R = np.full(stack.n_heads, -np.inf)
        self.step_R = np.zeros(stack.n_heads, dtype=np.int64)
        self._n_since_R = np.zeros(stack.n_heads, dtype=np.int64)
        self._is_stopped_R = np.zeros(stack.n_heads, dtype=bool)
        self._patience = patience

    @property
    def are_all_stopped(self) -> bool:
        """Whether no head can change any more."""
        return bool(self._is_stopped_R.all())

    def consider(self, stack: HeadStack, score_R: NDArray[np.float64], *, step: int) -> None:
        """Keep the weights of every head that scores more than ever before."""
        is_better_R = (score_R > self.score_R) & ~self._is_stopped_R
        self.score_R[is_better_R] = score_R[is_better_R]
        self.step_R[is_better_R] = step
        for head in np.flatnonzero(is_better_R).tolist():
            self.weight_RCD[head] = stack.weight_RCD[head]
            self.bias_RC[head] = stack.bias_RC[head]
        self._n_since_R = np.where(is_better_R, 0, self._n_since_R + 1)
        if self._patience is not None:
            self._is_stopped_R |= self._n_since_R >= self._patience


def validation_side(
    who: str, validation: tuple[Rows, Rows], *, train_MD: Tensor, class_C: NDArray[Any]
) -> ValidationSide:
    """Checked validation rows, on the device of the train side.

    Args:
        who: Function that asks, for the message.
        validation: (V, D) embeddings and (V,) labels.
        train_MD: Train embeddings, for width and device.
        class_C: (C,) sorted labels of the train side.

    Raises:
        ValueError: If an array is unusable, of another width, or a label is not of the train side.
    """
    embedding, label = validation
    row_VD = embedding_tensor(who, "validation", embedding, device=train_MD.device)
    if row_VD.shape[1] != train_MD.shape[1]:
        msg = (
            f"{who}: train and validation need embeddings of one width; got {train_MD.shape[1]} "
            f"and {row_VD.shape[1]}. Embed both sides with the same encoder and pooling."
        )
        raise ValueError(msg)
    label_V = labels_of(who, "validation labels", label, n_rows=len(row_VD))
    unknown = sorted(set(label_V.tolist()) - set(class_C.tolist()), key=str)
    if unknown:
        msg = (
            f"{who}: validation labels need to be classes of the train side, {class_C.tolist()}; "
            f"got {unknown}. Drop these rows, or move cases of these classes to the train side."
        )
        raise ValueError(msg)
    code_V = torch.from_numpy(np.searchsorted(class_C, label_V).astype(np.int64))
    return ValidationSide(row_VD=row_VD, code_V=code_V.to(row_VD.device), n_classes=len(class_C))
