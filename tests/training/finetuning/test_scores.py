"""Metrics of each kind of task against scikit-learn and SciPy, and the floors beside a model."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn import metrics as sk

from anlage.probes.splits.split import Split
from anlage.training.finetuning.floors import mean_pool_scores, prior_scores
from anlage.training.finetuning.scores import metrics_of, predicted_code, scored
from anlage.training.finetuning.scoring import Draws, difference_of, rows_of_folds, scores_of
from anlage.training.finetuning.targets import Targets
from anlage.training.finetuning.task_config import Task

N = 60
SPLITS = [
    Split(
        name=str(k),
        train=np.flatnonzero(np.arange(N) % 3 != k),
        test=np.flatnonzero(np.arange(N) % 3 == k),
    )
    for k in range(3)
]


def targets_of_kind(
    kind: str, target: np.ndarray, classes: tuple[str, ...], **task: object
) -> Targets:
    columns = {"time": "t", "event": "e"} if kind.startswith("survival") else {"target": "y"}
    if kind == "multi_label":
        columns = {"target": classes}
    return Targets(
        task=Task(kind=kind, **columns, **task),
        slide_ids=tuple(f"s{number:02d}" for number in range(len(target))),
        patient_N=np.array([f"p{number // 2:02d}" for number in range(len(target))]),
        site_N=None,
        target_NK=np.asarray(target, dtype=float).reshape(len(target), -1),
        classes=classes,
    )


def values(
    kind: str, classes: tuple[str, ...], target: np.ndarray, score: np.ndarray
) -> dict[str, float]:
    target = np.asarray(target, dtype=float).reshape(len(target), -1)
    return {m.name: m.metric(*m.reads(target, score)) for m in metrics_of(kind, classes)}


def test_two_classes() -> None:
    generator = np.random.default_rng(0)
    truth, score = generator.integers(0, 2, N), generator.random((N, 1))
    found = values("binary", ("no", "yes"), truth, score)
    named = (score[:, 0] >= 0.5).astype(int)
    assert found == pytest.approx(
        {
            "auroc": sk.roc_auc_score(truth, score[:, 0]),
            "auprc": sk.average_precision_score(truth, score[:, 0]),
            "balanced_accuracy": sk.balanced_accuracy_score(truth, named),
            "weighted_f1": sk.f1_score(truth, named, average="weighted"),
        }
    )


def test_classes_that_are_integers_have_a_kappa() -> None:
    generator = np.random.default_rng(1)
    truth, score = generator.integers(0, 3, N), generator.dirichlet(np.ones(3), N)
    found = values("multi_class", ("0", "1", "3"), truth, score)
    grade = np.array([0, 1, 3])
    of_grades = sk.cohen_kappa_score(
        grade[truth], grade[score.argmax(1)], weights="quadratic", labels=[0, 1, 2, 3]
    )
    assert found["quadratic_kappa"] == pytest.approx(of_grades)
    assert found["auroc_ovr"] == pytest.approx(sk.roc_auc_score(truth, score, multi_class="ovr"))
    assert found["auroc 3"] == pytest.approx(sk.roc_auc_score(truth == 2, score[:, 2]))
    assert "quadratic_kappa" not in values("multi_class", ("a", "b", "c"), truth, score)


def test_labels_are_scored_one_by_one_and_together() -> None:
    generator = np.random.default_rng(2)
    truth = generator.integers(0, 2, (N, 2)).astype(float)
    truth[generator.random((N, 2)) < 0.3] = np.nan
    score = generator.random((N, 2))
    found = values("multi_label", ("EGFR", "TP53"), truth, score)
    known = [~np.isnan(truth[:, k]) for k in range(2)]
    of_label = [sk.roc_auc_score(truth[known[k], k], score[known[k], k]) for k in range(2)]
    assert found["auroc EGFR"] == pytest.approx(of_label[0])
    assert found["auroc"] == pytest.approx(np.mean(of_label))


def test_grades() -> None:
    generator = np.random.default_rng(3)
    truth, score = generator.integers(0, 6, N), generator.dirichlet(np.ones(6), N)
    grade = predicted_code("ordinal", score)
    median = [int(np.searchsorted(row.cumsum(), 0.5)) for row in score]
    assert grade.tolist() == median
    found = values("ordinal", tuple("012345"), truth, score)
    assert found["quadratic_kappa"] == pytest.approx(
        sk.cohen_kappa_score(truth, grade, weights="quadratic", labels=range(6))
    )
    assert found["mean_absolute_error"] == pytest.approx(np.abs(truth - grade).mean())


def test_numbers() -> None:
    generator = np.random.default_rng(4)
    truth = generator.standard_normal(N)
    score = truth[:, None] + generator.standard_normal((N, 1))
    assert values("regression", (), truth, score) == pytest.approx(
        {
            "r2": sk.r2_score(truth, score[:, 0]),
            "mean_absolute_error": sk.mean_absolute_error(truth, score[:, 0]),
            "spearman": spearmanr(truth, score[:, 0]).statistic,
        }
    )


def test_patients_of_a_fold_are_averaged() -> None:
    targets = targets_of_kind("binary", np.repeat([0, 1], 2), ("no", "yes"), unit="patient")
    score = np.array([[0.1], [0.3], [0.9], [0.5]])
    found = scored(targets, np.arange(4), score, np.array(["0", "0", "0", "1"]))
    assert found.score_NP[:, 0].tolist() == pytest.approx([0.2, 0.9, 0.5])
    assert found.patient_N.tolist() == ["p00", "p01", "p01"]


def predictors(targets: Targets, means: dict[str, np.ndarray]):
    return {
        "mean_pool": rows_of_folds(
            targets, SPLITS, {s.name: mean_pool_scores(targets, s, means) for s in SPLITS}
        ),
        "prior": rows_of_folds(targets, SPLITS, {s.name: prior_scores(targets, s) for s in SPLITS}),
    }


@pytest.mark.parametrize(
    ("kind", "first", "floor"),
    [
        ("binary", "auroc", 0.5),
        ("multi_class", "auroc_ovr", 0.5),
        ("multi_label", "auroc", 0.5),
        ("ordinal", "quadratic_kappa", 0.0),
        ("survival_cox", "harrell_c", 0.5),
        ("regression", "r2", 0.0),
    ],
)
def test_floors_of_every_kind(kind: str, first: str, floor: float) -> None:
    """The probe reads what the mean tile says; frequencies say nothing."""
    generator = np.random.default_rng(5)
    hidden = generator.standard_normal(N)
    level = np.digitize(hidden, [-0.6, 0.6])
    target = {
        "binary": hidden > 0,
        "multi_class": level,
        "ordinal": level,
        "regression": hidden,
        "survival_cox": np.stack([np.exp(-2 * hidden), np.arange(N) % 5 > 0], axis=1),
        "multi_label": np.stack([hidden > 0, np.where(level == 1, np.nan, level > 1)], axis=1),
    }[kind]
    classes = {"binary": ("no", "yes"), "multi_label": ("a", "b")}.get(kind, ("0", "1", "2"))
    targets = targets_of_kind(kind, target, classes if kind != "regression" else ())
    rows = np.stack([hidden, generator.standard_normal(N)], axis=1).astype(np.float32)
    data = predictors(targets, dict(zip(targets.slide_ids, rows, strict=True)))
    found = scores_of(targets, data, Draws(n_resamples=50, seed=0))
    of_first = {
        s.predictor: s.mean_of_folds.value for s in found if s.metric == first and not s.label
    }
    assert of_first["mean_pool"] > (0.5 if kind == "ordinal" else 0.8)  # its penalty is strong
    assert of_first["prior"] == pytest.approx(floor, abs=0.15)
    difference = difference_of(
        targets, data["mean_pool"], data["prior"], Draws(n_resamples=200, seed=0)
    )
    assert difference.value == pytest.approx(of_first["mean_pool"] - of_first["prior"])
    assert difference.low > 0
    assert difference.words.startswith("+")


def test_ends_without_bound_are_left_open() -> None:
    targets = targets_of_kind("regression", np.arange(N), ())
    data = rows_of_folds(targets, SPLITS, {s.name: np.ones((20, 1)) for s in SPLITS})
    (score, *_) = scores_of(targets, {"model": data}, Draws(n_resamples=20, seed=0))
    assert score.mean_of_folds.model_dump_json()
