"""Patient-cluster bootstrap of five metrics: counted by group once, or scikit-learn per resample.

Predictions are made up: 1,000 patients whose scores share a shift and whose classes are mixed.
One turn of our sides scores all resamples with all five metrics: ``statistics`` only scores the
resamples, ``cluster_bootstrap`` is the whole call, with its draws, jackknife and BCa ends. One turn
of scikit-learn scores a few resamples with its five functions, on the rows of the resample or with
sample weights, checks of its input switched off; rates are per resample. A last side builds, from
parts of scikit-learn, what it has no function for: one confusion matrix and one sort of each class
serve all five. Before anything is timed, values of all sides are compared on the same resamples.

Usage, in the repository:
    uv run --group test benchmarks/bootstrap.py [--rows 100000] [--patients 1000] [--classes 9]
        [--resamples 1000] [--slow-resamples 8] [--rounds 5] [--threads 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
from numpy.typing import NDArray
from sklearn import metrics as slow
from threadpoolctl import threadpool_limits
from turns import take_turns

from anlage.probes.metrics.agreement import QUADRATIC_KAPPA
from anlage.probes.metrics.classification import BALANCED_ACCURACY, MACRO_F1
from anlage.probes.metrics.metric import Metric
from anlage.probes.metrics.ranking import AUPRC_MACRO, AUROC_OVR
from anlage.probes.uncertainty.bootstrap import cluster_bootstrap
from anlage.probes.uncertainty.resampling import resample_weights

METRICS = (BALANCED_ACCURACY, MACRO_F1, QUADRATIC_KAPPA, AUROC_OVR, AUPRC_MACRO)
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Predictions:
    """Made-up predictions: truth, predicted and patient (N,), probabilities (N, C)."""

    truth: NDArray[np.int64]
    predicted: NDArray[np.int64]
    score: NDArray[np.float64]
    patient: NDArray[np.int64]
    n_patients: int

    def columns(self, metric: Metric) -> tuple[NDArray[Any], NDArray[Any]]:
        """What the metric takes."""
        return self.truth, self.score if "score" in metric.columns else self.predicted


def predictions_of(n_rows: int, n_patients: int, n_classes: int) -> Predictions:
    """Every patient has rows of all classes, in shares of its own, and a shift of its logits."""
    generator = np.random.default_rng(0)
    patient = np.arange(n_rows) % n_patients
    share = generator.dirichlet(np.full(n_classes, 2.0), size=n_patients).cumsum(axis=1)
    truth = (generator.random((n_rows, 1)) > share[patient][:, :-1]).sum(axis=1)
    logit = generator.normal(size=(n_rows, n_classes))
    logit += generator.normal(size=(n_patients, n_classes))[patient] * 0.5
    logit[np.arange(n_rows), truth] += 2
    score = np.exp(logit) / np.exp(logit).sum(axis=1, keepdims=True)
    return Predictions(truth, score.argmax(axis=1), score, patient, n_patients)


def scores_by_sklearn(
    truth: NDArray[Any],
    predicted: NDArray[Any],
    score: NDArray[Any],
    weight: NDArray[np.float64] | None = None,
) -> list[float]:
    """The five metrics, in the order of METRICS."""
    return [
        slow.balanced_accuracy_score(truth, predicted, sample_weight=weight),
        slow.f1_score(truth, predicted, average="macro", sample_weight=weight),
        slow.cohen_kappa_score(truth, predicted, weights="quadratic", sample_weight=weight),
        slow.roc_auc_score(truth, score, multi_class="ovr", sample_weight=weight),
        slow.average_precision_score(truth, score, sample_weight=weight),
    ]


def by_rows(given: Predictions, weight_RG: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R, 5) values, each resample gathered row by row."""
    values = []
    for weight in weight_RG:
        rows = np.repeat(np.arange(len(given.truth)), weight[given.patient].astype(int))
        values.append(
            scores_by_sklearn(given.truth[rows], given.predicted[rows], given.score[rows])
        )
    return np.array(values)


def by_weights(given: Predictions, weight_RG: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R, 5) values, each resample as sample weights of all rows."""
    columns = (given.truth, given.predicted, given.score)
    return np.array([scores_by_sklearn(*columns, weight[given.patient]) for weight in weight_RG])


def by_shared_parts(given: Predictions, weight_RG: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R, 5) values of scikit-learn's parts, each made once: a sort a class, a confusion matrix."""
    values = []
    for weight_G in weight_RG:
        weight = weight_G[given.patient]
        count = slow.confusion_matrix(given.truth, given.predicted, sample_weight=weight)
        hit, true, guess = np.diag(count), count.sum(axis=1), count.sum(axis=0)
        apart = np.subtract.outer(*[np.arange(len(hit))] * 2) ** 2
        kappa = 1 - (apart * count).sum() * true.sum() / (true @ apart @ guess)
        areas = []
        for c in range(len(hit)):
            _, wrong, _, right, _ = slow.confusion_matrix_at_thresholds(
                given.truth == c, given.score[:, c], sample_weight=weight
            )
            area = np.trapezoid(np.r_[0, right], np.r_[0, wrong]) / (right[-1] * wrong[-1])
            precise = (np.diff(right, prepend=0) * right / (right + wrong)).sum() / right[-1]
            areas.append((area, precise))
        counted = [np.mean(hit / true), np.mean(2 * hit / (true + guess)), kappa]
        values.append(counted + np.mean(areas, axis=0).tolist())
    return np.array(values)


def by_groups(given: Predictions, weight_RG: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R, 5) values from sums by group; counting is part of the time."""
    values = []
    for metric in METRICS:
        columns = given.columns(metric)
        values.append(metric.over_groups(columns, given.patient, given.n_patients)(weight_RG))
    return np.stack(values, axis=1)


def by_cluster_bootstrap(given: Predictions, n_resamples: int) -> None:
    """The whole call: draws, all resamples, leave-one-patient-out, BCa ends."""
    for metric in METRICS:
        cluster_bootstrap(metric, given.columns(metric), given.patient, n_resamples=n_resamples)


def largest_difference(given: Predictions, weight_RG: NDArray[np.float64]) -> float:
    """Of any value of any two sides on the same resamples; stops above 1e-9."""
    ours = by_groups(given, weight_RG)
    others = [side(given, weight_RG) for side in (by_rows, by_weights, by_shared_parts)]
    difference = np.abs(np.stack(others) - ours).max()
    if not difference < TOLERANCE:
        msg = f"the sides disagree by {difference}"
        raise SystemExit(msg)
    return float(difference)


def main() -> None:
    """Compare values, measure all sides, print a table and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--patients", type=int, default=1000)
    parser.add_argument("--classes", type=int, default=9)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--slow-resamples", type=int, default=8, help="of a scikit-learn turn")
    parser.add_argument("--rounds", type=int, default=5, help="measured, after one that is not")
    parser.add_argument("--threads", type=int, default=2, help="of the linear algebra, all sides")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    made = predictions_of(given.rows, given.patients, given.classes)
    blocks = resample_weights(given.patients, n_resamples=given.resamples, seed=0)
    weight_RG = np.concatenate(list(blocks))
    few_RG = weight_RG[: given.slow_resamples]
    sides: dict[str, tuple[Callable[[], Any], int]] = {
        "statistics": (lambda: by_groups(made, weight_RG), given.resamples),
        "cluster_bootstrap": (lambda: by_cluster_bootstrap(made, given.resamples), given.resamples),
        "scikit-learn, rows": (lambda: by_rows(made, few_RG), len(few_RG)),
        "scikit-learn, sample weights": (lambda: by_weights(made, few_RG), len(few_RG)),
        "its parts, shared by hand": (lambda: by_shared_parts(made, few_RG), len(few_RG)),
    }
    with (
        sklearn.config_context(assume_finite=True, skip_parameter_validation=True),
        threadpool_limits(given.threads),
    ):
        difference = largest_difference(made, few_RG)
        rates = take_turns(sides, rounds=given.rounds)
    best = max(rate.per_s for name, rate in rates.items() if name.startswith("scikit-learn"))
    print(f"largest difference of any value: {difference:.1e}")
    print(
        "| side | resamples/s | CPU ms a resample | over scikit-learn |\n| --- | --- | --- | --- |"
    )
    for name, rate in rates.items():
        print(f"| {name} | {rate.per_s:.2f} | {rate.cpu_ms:.2f} | {rate.per_s / best:.2f} |")
    if given.json:
        settings = {name: value for name, value in vars(given).items() if name != "json"}
        figures = {
            "settings": settings,
            "metrics": [metric.name for metric in METRICS],
            "scikit_learn": sklearn.__version__,
            "largest_difference": difference,
            "sides": {name: asdict(rate) for name, rate in rates.items()},
            "over_scikit_learn": {name: rate.per_s / best for name, rate in rates.items()},
        }
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
