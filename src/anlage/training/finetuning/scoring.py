"""Scores of a fine-tuning run over its folds, for the model and its floors alike.

Shape suffixes: N rows (slides or patients), P numbers of a prediction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anlage.probes.metrics.averages import mean_over_folds
from anlage.probes.splits.split import Split
from anlage.probes.uncertainty.bootstrap import cluster_bootstrap
from anlage.probes.uncertainty.paired import paired_bootstrap
from anlage.training.finetuning.result import Estimate, Predictor, Score, estimate_of
from anlage.training.finetuning.scores import Scored, TaskMetric, metrics_of, scored
from anlage.training.finetuning.targets import Targets

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Draws:
    """Resamples of patients.

    Attributes:
        n_resamples: How many.
        seed: Of them.
    """

    n_resamples: int
    seed: int


def rows_of_folds(
    targets: Targets, splits: Sequence[Split], score_of: Mapping[str, Floats | None]
) -> Scored | None:
    """The test rows of all folds below each other; None where a fold has no scores.

    Args:
        targets: The task's slides.
        splits: The folds.
        score_of: (N, P) scores of the test side of each fold, by its name.
    """
    scores = [score_of[split.name] for split in splits]
    there = [score for score in scores if score is not None]
    if len(there) < len(splits):
        return None
    return scored(
        targets,
        np.concatenate([split.test for split in splits]),
        np.concatenate(there),
        np.repeat([split.name for split in splits], [len(split.test) for split in splits]),
    )


def scores_of(targets: Targets, predicted: Mapping[Predictor, Scored], draws: Draws) -> list[Score]:
    """Every metric of the task of every predictor, in the order of the metrics."""
    found = metrics_of(targets.task.kind, targets.classes)
    return [
        _score(metric, predictor, data, draws)
        for metric in found
        for predictor, data in predicted.items()
    ]


def difference_of(targets: Targets, model: Scored, floor: Scored, draws: Draws) -> Estimate | None:
    """The model less a floor in the metric that stands for the task, with intervals over patients.

    None where it has no value, or there are too few patients to resample.
    """
    first = metrics_of(targets.task.kind, targets.classes)[0]
    try:
        interval = paired_bootstrap(
            mean_over_folds(first.metric),
            _columns(first, model),
            _columns(first, floor),
            model.patient_N,
            n_resamples=draws.n_resamples,
            seed=draws.seed,
        )
    except ValueError:
        return None
    return estimate_of(interval, sign="+")


def _columns(metric: TaskMetric, data: Scored) -> tuple[NDArray[np.generic], ...]:
    return (*metric.reads(data.target_NK, data.score_NP), data.fold_N)


def _score(metric: TaskMetric, predictor: Predictor, data: Scored, draws: Draws) -> Score:
    columns = _columns(metric, data)
    return Score(
        predictor=predictor,
        metric=metric.metric.name,
        label=metric.label,
        mean_of_folds=_mean_of_folds(metric, columns, data, draws),
        of_fold={
            str(fold): _value(metric, [c[data.fold_N == fold] for c in columns[:-1]])
            for fold in dict.fromkeys(data.fold_N.tolist())
        },
        pooled=_value(metric, columns[:-1]) if _tests_once(data) else None,
    )


def _mean_of_folds(
    metric: TaskMetric, columns: Sequence[NDArray[np.generic]], data: Scored, draws: Draws
) -> Estimate | None:
    try:
        interval = cluster_bootstrap(
            mean_over_folds(metric.metric),
            columns,
            data.patient_N,
            n_resamples=draws.n_resamples,
            seed=draws.seed,
        )
    except ValueError:  # no value in any fold, or one patient: told of as no value
        return None
    return estimate_of(interval)


def _value(metric: TaskMetric, columns: Sequence[NDArray[np.generic]]) -> float | None:
    try:
        value = metric.metric(*columns)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _tests_once(data: Scored) -> bool:
    """Whether no patient is tested by two folds."""
    pairs = set(zip(data.patient_N.tolist(), data.fold_N.tolist(), strict=True))
    return len(pairs) == len(set(data.patient_N.tolist()))
