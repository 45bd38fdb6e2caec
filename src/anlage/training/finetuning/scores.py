"""The metrics of a task: what they compare, of whom, and over which folds.

Shape suffixes: N rows (slides or patients), K numbers of a target, P numbers of a prediction.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anlage.probes.metrics.agreement import QUADRATIC_KAPPA
from anlage.probes.metrics.averages import mean_over_labels
from anlage.probes.metrics.classification import BALANCED_ACCURACY, WEIGHTED_F1
from anlage.probes.metrics.concordance import HARRELL_C
from anlage.probes.metrics.correlation import MEAN_ABSOLUTE_ERROR, R2, SPEARMAN
from anlage.probes.metrics.metric import Columns, Metric
from anlage.probes.metrics.ranking import AUPRC, AUPRC_MACRO, AUROC, AUROC_OVR
from anlage.training.finetuning.targets import Targets
from anlage.training.finetuning.task_config import SURVIVAL, Kind

LOGGER = logging.getLogger(__name__)
Floats = NDArray[np.float64]
Reading = Callable[[Floats, Floats], Columns]


@dataclass(frozen=True, slots=True)
class TaskMetric:
    """A metric of a task.

    Attributes:
        metric: The metric.
        reads: Its columns, from (N, K) targets and (N, P) scores.
        label: The class or label that it is of; empty where it is of all.
    """

    metric: Metric
    reads: Reading
    label: str = ""

    @property
    def name(self) -> str:
        """As it stands in results, such as ``auroc`` or ``auroc TP53``."""
        return f"{self.metric.name} {self.label}".strip()

    @property
    def sign(self) -> int:
        """1 where more is better, -1 of errors."""
        return 1 if self.metric.is_better_larger else -1


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scored:
    """Predictions that are scored: of slides, or of patients where those are the unit.

    Attributes:
        target_NK: (N, K) targets.
        score_NP: (N, P) scores.
        patient_N: (N,) whose each row is.
        fold_N: (N,) fold that predicted it.
    """

    target_NK: Floats
    score_NP: Floats
    patient_N: NDArray[np.str_]
    fold_N: NDArray[np.str_]


def scored(
    targets: Targets, rows: NDArray[np.int64], score_NP: Floats, fold_N: NDArray[np.str_]
) -> Scored:
    """Rows to score; where the patient is the unit, the mean over the patient's slides in a fold.

    Args:
        targets: The task's slides.
        rows: (N,) which of them.
        score_NP: (N, P) their scores.
        fold_N: (N,) the fold that predicted each.
    """
    target_NK, patient_N = targets.target_NK[rows], targets.patient_N[rows]
    if targets.task.unit != "patient":
        return Scored(target_NK=target_NK, score_NP=score_NP, patient_N=patient_N, fold_N=fold_N)
    pair_N = np.array([f"{f}\t{p}" for f, p in zip(fold_N, patient_N, strict=True)], dtype=str)
    _, first, code_N = np.unique(pair_N, return_index=True, return_inverse=True)
    sums = np.zeros((len(first), score_NP.shape[1]))
    np.add.at(sums, code_N, score_NP)
    return Scored(
        target_NK=target_NK[first],
        score_NP=sums / np.bincount(code_N)[:, None],
        patient_N=patient_N[first],
        fold_N=fold_N[first],
    )


def metrics_of(kind: Kind, classes: tuple[str, ...]) -> list[TaskMetric]:
    """The metrics of a task, the one that stands for it first.

    Args:
        kind: Kind of the task.
        classes: Classes, grades or labels.
    """
    match kind:
        case "binary":
            return _binary()
        case "multi_class":
            return _multi_class(classes)
        case "multi_label":
            return _multi_label(classes)
        case "ordinal":
            return _ordinal()
        case "regression":
            return [TaskMetric(metric, _numbers) for metric in (R2, MEAN_ABSOLUTE_ERROR, SPEARMAN)]
        case _:
            return [TaskMetric(HARRELL_C, _survival)]


def first_score(
    targets: Targets, rows: NDArray[np.int64], score_NP: Floats
) -> tuple[str, float, int]:
    """Name and value of the metric that stands for the task, and 1 where more is better, else -1.

    The value is NaN where the metric has none on these rows (one class, no event).
    """
    fold_N = np.full(len(rows), "0")
    data = scored(targets, rows, score_NP, fold_N)
    found = metrics_of(targets.task.kind, targets.classes)[0]
    try:
        value = found.metric(*found.reads(data.target_NK, data.score_NP))
    except ValueError as error:
        LOGGER.info("no %s: %s", found.name, error)
        value = float("nan")
    return found.metric.name, value, found.sign


def perfect_scores(targets: Targets, rows: NDArray[np.int64]) -> Floats:
    """(N, P) scores right of every slide; a metric without a value here has none at all."""
    target_NK, kind = targets.target_NK[rows], targets.task.kind
    score_NP = np.nan_to_num(target_NK)
    if kind in SURVIVAL:
        score_NP = -target_NK[:, :1]
    elif kind in {"multi_class", "ordinal"}:
        n_classes = max(len(targets.classes), int(targets.target_NK.max()) + 1)
        score_NP = np.eye(n_classes)[target_NK[:, 0].astype(int)]
    return np.asarray(score_NP, dtype=np.float64)


def predicted_code(kind: Kind, score_NP: Floats) -> NDArray[np.int64]:
    """(N,) class or grade that scores stand for: the likeliest, and the median of grades."""
    if kind == "binary":
        return (score_NP[:, 0] >= 0.5).astype(np.int64)
    if kind == "ordinal":
        above_NK = score_NP[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]
        return np.asarray((above_NK > 0.5).sum(axis=1), dtype=np.int64)
    return np.asarray(score_NP.argmax(axis=1), dtype=np.int64)


def _binary() -> list[TaskMetric]:
    def ranked(target_NK: Floats, score_NP: Floats) -> Columns:
        return target_NK[:, 0].astype(int), score_NP[:, 0]

    named = _of_codes("binary")
    return [
        *(TaskMetric(metric, ranked) for metric in (AUROC, AUPRC)),
        *(TaskMetric(metric, named) for metric in (BALANCED_ACCURACY, WEIGHTED_F1)),
    ]


def _multi_class(classes: tuple[str, ...]) -> list[TaskMetric]:
    def ranked(target_NK: Floats, score_NP: Floats) -> Columns:
        return target_NK[:, 0].astype(int), score_NP

    named = _of_codes("multi_class")
    found = [TaskMetric(metric, ranked) for metric in (AUROC_OVR, AUPRC_MACRO)]
    found += [TaskMetric(metric, named) for metric in (BALANCED_ACCURACY, WEIGHTED_F1)]
    if all(name.lstrip("-").isdigit() for name in classes):
        grade_C = np.array([int(name) for name in classes])

        def graded(target_NK: Floats, score_NP: Floats) -> Columns:
            return tuple(grade_C[code_N] for code_N in named(target_NK, score_NP))

        found.append(TaskMetric(QUADRATIC_KAPPA, graded))
    for code, name in enumerate(classes):
        found += [TaskMetric(metric, _one_class(code), name) for metric in (AUROC, AUPRC)]
    return found


def _one_class(code: int) -> Reading:
    def reads(target_NK: Floats, score_NP: Floats) -> Columns:
        return (target_NK[:, 0] == code).astype(int), score_NP[:, code]

    return reads


def _multi_label(classes: tuple[str, ...]) -> list[TaskMetric]:
    def ranked(target_NK: Floats, score_NP: Floats) -> Columns:
        return target_NK, score_NP

    def named(target_NK: Floats, score_NP: Floats) -> Columns:
        return target_NK, (score_NP >= 0.5).astype(int)

    found = [TaskMetric(mean_over_labels(metric), ranked) for metric in (AUROC, AUPRC)]
    found.append(TaskMetric(mean_over_labels(BALANCED_ACCURACY), named))
    for code, name in enumerate(classes):
        found += [
            TaskMetric(mean_over_labels(metric), _one_label(code), name)
            for metric in (AUROC, AUPRC)
        ]
    return found


def _one_label(code: int) -> Reading:
    def reads(target_NK: Floats, score_NP: Floats) -> Columns:
        return target_NK[:, [code]], score_NP[:, [code]]

    return reads


def _ordinal() -> list[TaskMetric]:
    named = _of_codes("ordinal")
    metrics = (QUADRATIC_KAPPA, MEAN_ABSOLUTE_ERROR, SPEARMAN, BALANCED_ACCURACY)
    return [TaskMetric(metric, named) for metric in metrics]


def _of_codes(kind: Kind) -> Reading:
    def reads(target_NK: Floats, score_NP: Floats) -> Columns:
        return target_NK[:, 0].astype(int), predicted_code(kind, score_NP)

    return reads


def _numbers(target_NK: Floats, score_NP: Floats) -> Columns:
    return target_NK[:, 0], score_NP[:, 0]


def _survival(target_NK: Floats, score_NP: Floats) -> Columns:
    return target_NK[:, 1].astype(int), target_NK[:, 0], score_NP[:, 0]
