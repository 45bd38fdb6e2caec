"""The loss of a task, bag by bag, with what it takes from the training side alone.

Shape suffixes: M training slides, B bags, C outputs, K numbers of a target.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anlage.encoders.slide_model_folder import SlideTask
from anlage.objectives.slide_classification import binary_loss, class_loss, label_loss
from anlage.objectives.slide_ordinal import Link, ordinal_loss
from anlage.objectives.slide_regression import Moments, Penalty, regression_loss, target_moments
from anlage.objectives.slide_survival import Ties, bin_of, cox_loss, hazard_loss, survival_bins
from anlage.training.finetuning.targets import Targets
from anlage.training.finetuning.task_config import Task

CLASSES = ("binary", "multi_class", "ordinal")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TaskObjective:
    """What a fold minimises.

    Attributes:
        reads: How outputs are read; goes into the model's folder.
        class_weight_C: Weight of each class, or of each label's positives; None for 1.
        moments: Mean and deviation of numbers on the training side.
        edges_C: Inner edges of the intervals of time.
        link: Of ordinal grades.
        ties: Of Cox's loss.
        censored_weight: Of censored slides, where time is cut into intervals.
        penalty: Of numbers.
    """

    reads: SlideTask
    class_weight_C: Tensor | None = None
    moments: Moments | None = None
    edges_C: Tensor | None = None
    link: Link = "coral"
    ties: Ties = "efron"
    censored_weight: float = 1.0
    penalty: Penalty = "mse"

    @property
    def n_outputs(self) -> int:
        """Outputs C of the head."""
        match self.reads.kind:
            case "multi_class" | "multi_label":
                return len(self.reads.classes)
            case "ordinal":
                return len(self.reads.classes) - 1
            case "survival_discrete":
                return len(self.reads.edges) + 1
            case _:
                return 1

    @property
    def compares_bags(self) -> bool:
        """Whether a bag's loss needs the other bags of the step (Cox)."""
        return self.reads.kind == "survival_cox"

    def per_bag(self, logits_BC: Tensor, target_BK: Tensor) -> Tensor:
        """(B,) float32 loss of each bag by itself; not of Cox.

        Args:
            logits_BC: (B, C) outputs.
            target_BK: (B, K) float64 targets, as ``Targets`` has them, on the same device.

        Raises:
            ValueError: If an output is not finite.
        """
        match self.reads.kind:
            case "multi_label":
                return label_loss(logits_BC, target_BK, positive_weight_C=self.class_weight_C)
            case "regression":
                assert self.moments is not None
                standard_BC = self.moments.standardised(target_BK)
                return regression_loss(logits_BC, standard_BC, penalty=self.penalty)
            case "survival_discrete":
                assert self.edges_C is not None
                span_B = bin_of(target_BK[:, 0], self.edges_C)
                return hazard_loss(
                    logits_BC, span_B, target_BK[:, 1], censored_weight=self.censored_weight
                )
            case _:
                return self._of_class(logits_BC, target_BK[:, 0])

    def of_step(self, logits_B1: Tensor, target_BK: Tensor) -> Tensor:
        """The loss of all bags of a step together, a scalar; the mean where bags stand alone."""
        if self.compares_bags:
            return cox_loss(logits_B1, target_BK[:, 0], target_BK[:, 1], ties=self.ties)
        return self.per_bag(logits_B1, target_BK).mean()

    def on(self, device: torch.device) -> TaskObjective:
        """The same with its tensors on a device."""
        moments = self.moments and Moments(*(part.to(device) for part in self.moments))
        weight = None if self.class_weight_C is None else self.class_weight_C.to(device)
        edges = None if self.edges_C is None else self.edges_C.to(device)
        return replace(self, class_weight_C=weight, moments=moments, edges_C=edges)

    def _of_class(self, logits_BC: Tensor, target_B: Tensor) -> Tensor:
        if self.reads.kind == "multi_class":
            return class_loss(logits_BC, target_B, class_weight_C=self.class_weight_C)
        if self.reads.kind == "binary":
            loss_B = binary_loss(logits_BC, target_B)
        else:
            loss_B = ordinal_loss(logits_BC, target_B, link=self.link)
        if self.class_weight_C is None:
            return loss_B
        return loss_B * self.class_weight_C.to(loss_B)[target_B.long()]


def objective_of(targets: Targets, train: NDArray[np.int64]) -> TaskObjective:
    """The objective of a fold.

    Args:
        targets: All slides of the task.
        train: Rows of the training side; weights, moments and intervals come from them alone.

    Raises:
        ValueError: If they do not allow it: too few events for the intervals, numbers that do not
            vary.
    """
    task, target_MK = targets.task, torch.from_numpy(targets.target_NK[train])
    moments, edges = None, None
    if task.kind == "regression":
        moments = target_moments(target_MK)
    if task.kind == "survival_discrete":
        edges = survival_bins(target_MK[:, 0], target_MK[:, 1], n_bins=task.intervals)
    reads = SlideTask(
        kind=task.kind,
        target=task.columns,
        classes=targets.classes,
        threshold=task.threshold,
        unit=task.unit,
        mean=None if moments is None else float(moments.mean_C[0]),
        deviation=None if moments is None else float(moments.deviation_C[0]),
        edges=() if edges is None else tuple(edges.tolist()),
    )
    weight = _weights(task, target_MK, len(targets.classes))
    return TaskObjective(
        reads=reads,
        class_weight_C=weight,
        moments=moments,
        edges_C=edges,
        link=task.link,
        ties=task.ties,
        censored_weight=task.censored_weight,
        penalty=task.penalty,
    )


def _weights(task: Task, target_MK: Tensor, n_classes: int) -> Tensor | None:
    if task.class_weights == "none" or task.kind not in {*CLASSES, "multi_label"}:
        return None
    if task.kind == "multi_label":
        n_positive_C = target_MK.nansum(dim=0)
        n_negative_C = (~target_MK.isnan()).sum(dim=0) - n_positive_C
        is_even_C = (n_positive_C > 0) & (n_negative_C > 0)
        return torch.where(is_even_C, n_negative_C / n_positive_C.clamp(min=1), 1.0).float()
    count_C = torch.bincount(target_MK[:, 0].long(), minlength=n_classes)
    n_present = int((count_C > 0).sum())
    return (len(target_MK) / (n_present * count_C.clamp(min=1))).float()
