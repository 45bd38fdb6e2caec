"""Simulated studies of patients with several rows each, whose truth is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy.special import expit, ndtr

from anlage.probes.metrics.classification import ACCURACY, BALANCED_ACCURACY
from anlage.probes.metrics.metric import Metric
from anlage.probes.metrics.ranking import AUROC

POPULATION = 100_000
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Study:
    """Rows of one simulated study: truth, two models' outputs, patients."""

    truth_N: Array
    a_N: Array
    b_N: Array
    group_N: Array


Simulate = Callable[[np.random.Generator, int, float], Study]


def patients(generator: np.random.Generator, n: int) -> Array:
    """The patient of each row; 1 to 7 rows each."""
    return np.repeat(np.arange(n), generator.integers(1, 8, n))


def two_labels(
    generator: np.random.Generator, truth: Array, group: Array, *, ease_C: Array, gap: float
) -> Study:
    """Labels of two models, right by a chance of the row, its patient, and the model."""
    n = int(group[-1]) + 1
    n_classes = len(ease_C)
    shared, own = generator.normal(size=n), generator.normal(0, 0.5, size=(2, n))
    labels = []
    for model, bonus in enumerate((gap, 0.0)):
        is_right = generator.random(len(group)) < expit(
            ease_C[truth] + bonus + shared[group] + own[model][group]
        )
        wrong = (truth + generator.integers(1, n_classes, len(truth))) % n_classes
        labels.append(np.where(is_right, truth, wrong))
    return Study(truth, labels[0], labels[1], group)


def pure_binary(generator: np.random.Generator, n: int, gap: float) -> Study:
    """Two classes of patients, 30 % in the harder one."""
    group = patients(generator, n)
    truth = (generator.random(n) < 0.3).astype(int)[group]
    return two_labels(generator, truth, group, ease_C=np.array([1.5, 0.3]), gap=gap)


def mixed_classes(generator: np.random.Generator, n: int, gap: float) -> Study:
    """Three classes of tiles; most tiles of a patient are of its own class, a fifth of any."""
    group = patients(generator, n)
    own = generator.choice(3, size=n, p=(0.5, 0.3, 0.2))[group]
    is_other = generator.random(len(group)) < 0.2
    truth = np.where(is_other, generator.choice(3, size=len(group), p=(0.5, 0.3, 0.2)), own)
    return two_labels(generator, truth, group, ease_C=np.array([1.5, 0.8, 0.0]), gap=gap)


def scores(generator: np.random.Generator, n: int, gap: float) -> Study:
    """Scores of patients of two classes; half the variance is the patient's."""
    group = patients(generator, n)
    truth = (generator.random(n) < 0.4).astype(int)[group]
    shared, own = generator.normal(0, 0.8, size=n), generator.normal(0, 0.6, size=(2, n))
    noise = generator.normal(size=(2, len(group)))
    a, b = (
        (2.0 + bonus) * truth + shared[group] + own[model][group] + noise[model]
        for model, bonus in enumerate((gap, 0.0))
    )
    return Study(truth, a, np.exp(b), group)  # of another scale: exp changes no order


@dataclass(frozen=True)
class Scenario:
    """What is simulated and scored.

    Attributes:
        metric: Of model a; of a minus b if ``is_paired``.
        simulate: Makes a study of so many patients, with model a better by a gap.
        is_paired: Whether the difference is scored.
        gap: Of the study, on the scale of the simulation.
    """

    metric: Metric
    simulate: Simulate
    is_paired: bool = False
    gap: float = 0.0


SCENARIOS = {
    "accuracy, 2 classes": Scenario(ACCURACY, pure_binary),
    "balanced accuracy, 2 classes": Scenario(BALANCED_ACCURACY, pure_binary),
    "balanced accuracy, 3 mixed classes": Scenario(BALANCED_ACCURACY, mixed_classes),
    "AUROC": Scenario(AUROC, scores),
    "difference of balanced accuracy": Scenario(
        BALANCED_ACCURACY, mixed_classes, is_paired=True, gap=0.3
    ),
    "difference of AUROC": Scenario(AUROC, scores, is_paired=True, gap=0.3),
}


def whole_study(scenario: Scenario, generator: np.random.Generator, n: int, gap: float) -> Study:
    """A study in which every class has a row; others are drawn again."""
    while True:
        study = scenario.simulate(generator, n, gap)
        if len(np.unique(study.truth_N)) == (3 if scenario.simulate is mixed_classes else 2):
            return study


@cache
def truth_of(name: str) -> float:
    """The metric in the population."""
    scenario = SCENARIOS[name]
    if (
        scenario.simulate is scores
    ):  # rows of a pair are of two patients: variances 2 x (0.64 + 0.36 + 1)
        a, b = ndtr((2 + scenario.gap) / 2), ndtr(1.0)
        return float(a - b if scenario.is_paired else a)
    study = scenario.simulate(np.random.default_rng(0), POPULATION, scenario.gap)
    a, b = (scenario.metric(study.truth_N, labels) for labels in (study.a_N, study.b_N))
    return a - b if scenario.is_paired else a


TESTS = {
    "balanced accuracy": Scenario(BALANCED_ACCURACY, mixed_classes, is_paired=True, gap=0.4),
    "AUROC": Scenario(AUROC, scores, is_paired=True, gap=0.5),
}
