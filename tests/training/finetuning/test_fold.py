"""A fold: what one tile of a bag says is learned; killed, it ends in the same bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from marked_bags import mark_of_class, two_classes, write_marked

from anlage.bags.loader import BagCache, BagSet
from anlage.bags.slide_labels import SlideLabels
from anlage.encoders.slide_model_folder import load_slide_model
from anlage.errors import TrainingError
from anlage.probes.splits.split import Split
from anlage.recipe import load_recipe
from anlage.training.finetuning import fold as finetune_fold
from anlage.training.finetuning.config import FinetuneConfig
from anlage.training.finetuning.fold import train_fold
from anlage.training.finetuning.material import Material
from anlage.training.finetuning.predictions import read_predictions
from anlage.training.finetuning.scores import first_score
from anlage.training.finetuning.targets import targets_of
from anlage.training.log import read_metrics
from anlage.training.stopping import StopRequest

N = 40
TRAIN, VALIDATION, TEST = np.arange(24), np.arange(24, 30), np.arange(30, N)
SPLIT = Split(name="0", train=TRAIN, validation=VALIDATION, test=TEST)
POOLING = "model.pooling={kind: abmil, width: 16, hidden: 8, input_dropout: 0.0, dropout: 0.0}"
QUICK = (
    *("batch_size=6", "epochs=12", "precision=fp32", "choice.patience=null"),
    *("optimizer.peak_lr=0.02", "optimizer.warmup_epochs=0.5"),
)


def config_of(*overrides: str) -> FinetuneConfig:
    return load_recipe("abmil", FinetuneConfig, overrides=(*QUICK, POOLING, *overrides))


def rows() -> list[dict[str, object]]:
    """Slides with a column for each kind of task, all functions of a grade of 0 to 3."""
    found = []
    for row in two_classes(N):
        number = int(str(row["slide_id"])[6:9])
        grade = 2 * (row["label"] == "mutated") + number % 2
        found.append(
            row
            | {"grade": grade, "subtype": "abcd"[grade], "even": number % 2}
            | {"months": 40 - 9 * grade - number % 5, "dead": int(number % 4 > 0), "tmb": 5 * grade}
        )
    return found


def mark_of_grade(row: dict[str, object]) -> list[float]:
    grade = int(row["grade"])  # type: ignore[call-overload]
    return [1.0, (grade // 2 - 0.5) * 2, (grade % 2 - 0.5) * 2, grade / 3]


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory):
    return write_marked(tmp_path_factory.mktemp("marked"), rows(), mark_of_grade)


def material_of(slides, config: FinetuneConfig) -> Material:
    labels = SlideLabels.open(slides.labels)
    bags = BagSet.open(slides.bags, slide_ids=labels.slide_ids)
    return Material(bags=bags, targets=targets_of(config.task, labels, bags), cache=BagCache(bags))


def score_of(material: Material, folder: Path) -> tuple[str, float]:
    test = read_predictions(folder / "predictions.parquet", material.targets).of_side("test")
    name, value, _ = first_score(material.targets, *test)
    return name, value


TASKS = {
    "binary": ("task.positive=mutated",),
    "threshold": ("task={kind: binary, target: tmb, threshold: 7.5}",),
    "multi_class": ("task={kind: multi_class, target: subtype, class_weights: balanced}",),
    "multi_label": ("task={kind: multi_label, target: [even, dead], class_weights: balanced}",),
    "ordinal": ("task={kind: ordinal, target: grade}",),
    "survival_cox": ("task={kind: survival_cox, target: null, time: months, event: dead}",),
    "survival_discrete": (
        "task={kind: survival_discrete, target: null, time: months, event: dead, intervals: 3}",
    ),
    "regression": ("task={kind: regression, target: tmb}",),
    "ordinal, proportional odds": ("task={kind: ordinal, target: grade, link: cumulative}",),
    "survival_cox, breslow": (
        "task={kind: survival_cox, target: null, time: months, event: dead, ties: breslow}",
    ),
    "regression, huber": ("task={kind: regression, target: tmb, penalty: huber}",),
}


@pytest.mark.parametrize("kind", TASKS)
def test_every_kind_is_learned_from_one_tile(kind: str, slides, tmp_path) -> None:
    config = config_of(*TASKS[kind])
    material = material_of(slides, config)
    end = train_fold(config, material, SPLIT, tmp_path / "fold-0")
    assert end.is_finished
    name, value = score_of(material, tmp_path / "fold-0")
    least = {
        "multi_label": 0.4,
        "survival_discrete": 0.8,
        "survival_cox": 0.8,
        "regression": 0.7,
    }.get(kind.partition(",")[0], 0.9)
    assert value >= least, name
    table = pq.read_table(tmp_path / "fold-0/predictions.parquet")
    assert table["side"].to_pylist() == ["val"] * 6 + ["test"] * 10
    sums = [table[c].to_numpy() for c in table.column_names if c.startswith("probability_")]
    if kind in {"multi_class", "ordinal", "ordinal, proportional odds"}:
        np.testing.assert_allclose(sum(sums), 1, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_the_stored_model_gives_the_stored_predictions(precision, slides, tmp_path) -> None:
    config = config_of("task.positive=mutated", "epochs=3", f"precision={precision}")
    material = material_of(slides, config)
    train_fold(config, material, SPLIT, tmp_path / "fold-0")
    model = load_slide_model(tmp_path / "fold-0/model")
    stored = read_predictions(tmp_path / "fold-0/predictions.parquet", material.targets)
    for row, score_P in zip(stored.rows, stored.score_NP, strict=True):
        (batch,) = material.whole_bags(np.array([row]), size=1)
        found = model.predict(batch.features_TD, batch.cell_T2, batch.lengths).score_BP
        assert found[0].numpy() == pytest.approx(score_P, abs=1e-6)
    assert model.config.provenance["trained_on"] == sorted(material.targets.patient_N[TRAIN])


class _KilledError(Exception):
    pass


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    whole = finetune_fold.take_step

    def until(network, optimizer, parts, settings):
        if settings.told.endswith(f"step {step}"):
            raise _KilledError
        return whole(network, optimizer, parts, settings)

    monkeypatch.setattr(finetune_fold, "take_step", until)


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a finished fold that does not hold a time or a path."""
    names = ("fold.json", "metrics.jsonl", "predictions.parquet", "model/model.safetensors")
    return {name: (folder / name).read_bytes() for name in names}


@pytest.mark.parametrize("step", [2, 9, 17])
def test_a_killed_fold_ends_in_the_same_bits(step: int, slides, tmp_path, monkeypatch) -> None:
    """With dropout, shuffled and capped tiles, parts and the best of several epochs."""
    config = config_of(
        *("task.positive=mutated", "epochs=5", "accumulate=3", "optimizer.weight_decay=0.1"),
        *("model.dropout=0.3", "tiles={shuffle: true, most: 7}"),
    )
    material = material_of(slides, config)
    train_fold(config, material, SPLIT, tmp_path / "a/fold-0")
    with monkeypatch.context() as patched:
        kill_at(patched, step)
        with pytest.raises(_KilledError):
            train_fold(config, material, SPLIT, tmp_path / "b/fold-0")
    train_fold(config, material, SPLIT, tmp_path / "b/fold-0")
    assert content(tmp_path / "a/fold-0") == content(tmp_path / "b/fold-0")
    steps = [row["step"] for row in read_metrics(tmp_path / "b/fold-0/metrics.jsonl")]
    assert steps == list(range(20))


def test_a_signal_stops_between_steps_and_loses_none(slides, tmp_path) -> None:
    config = config_of("task.positive=mutated", "epochs=2")
    material = material_of(slides, config)
    train_fold(config, material, SPLIT, tmp_path / "a/fold-0")
    stop = StopRequest()
    stop.signal_number = 15
    for step in range(1, 8):
        end = train_fold(config, material, SPLIT, tmp_path / "b/fold-0", stop=stop)
        assert (end.is_finished, end.steps) == (False, step)
    train_fold(config, material, SPLIT, tmp_path / "b/fold-0", stop=stop)
    assert content(tmp_path / "a/fold-0") == content(tmp_path / "b/fold-0")


def test_the_best_epoch_is_kept_and_patience_ends(slides, tmp_path) -> None:
    config = config_of("task.positive=mutated", "optimizer.peak_lr=0.5", "choice.patience=2")
    end = train_fold(config, material_of(slides, config), SPLIT, tmp_path / "fold-0")
    looks = [r for r in read_metrics(tmp_path / "fold-0/metrics.jsonl") if "val_loss" in r]
    losses = [row["val_loss"] for row in looks]
    best = int(np.argmin(losses))
    assert end.kept_step == looks[best]["step"] + 1
    assert end.value == pytest.approx(-losses[best])
    assert end.ended_early == (len(losses) < 12)
    assert len(losses) == min(best + 3, 12)


def test_a_killed_fold_knows_its_best_epoch(slides, tmp_path, monkeypatch) -> None:
    config = config_of("task.positive=mutated", "optimizer.peak_lr=0.5", "choice.patience=2")
    material = material_of(slides, config)
    end = train_fold(config, material, SPLIT, tmp_path / "a/fold-0")
    assert end.ended_early
    with monkeypatch.context() as patched:
        kill_at(patched, end.steps - 1)
        with pytest.raises(_KilledError):
            train_fold(config, material, SPLIT, tmp_path / "b/fold-0")
    train_fold(config, material, SPLIT, tmp_path / "b/fold-0")
    assert content(tmp_path / "a/fold-0") == content(tmp_path / "b/fold-0")


def test_folds_draw_their_own_weights(slides, tmp_path) -> None:
    config = config_of("task.positive=mutated", "epochs=1", "optimizer.peak_lr=1e-9")
    material = material_of(slides, config)
    weights = []
    for number in (0, 1):
        train_fold(config, material, SPLIT, tmp_path / f"fold-{number}", number=number)
        weights.append(load_slide_model(tmp_path / f"fold-{number}/model").fingerprint)
    assert weights[0] != weights[1]


@pytest.mark.parametrize(("batch_size", "accumulate"), [(10, 5), (32, 1)])
def test_cox_counts_no_slide_twice_in_a_step(
    batch_size: int, accumulate: int, slides, tmp_path, monkeypatch
) -> None:
    """A step across two epochs, or larger than the training side, would draw some again."""
    sizes = (f"batch_size={batch_size}", f"accumulate={accumulate}", "epochs=3")
    config = config_of(*TASKS["survival_cox"], *sizes)
    drawn: list[list[str]] = []
    whole = finetune_fold.take_step

    def noting(network, optimizer, parts, settings):
        found = [next(parts) for _ in settings.sizes]
        assert [len(part.batch.lengths) for part in found] == list(settings.sizes)
        drawn.append([slide_id for part in found for slide_id in part.batch.slide_ids])
        return whole(network, optimizer, iter(found), settings)

    monkeypatch.setattr(finetune_fold, "take_step", noting)
    assert train_fold(config, material_of(slides, config), SPLIT, tmp_path / "fold-0").is_finished
    assert all(len(set(step)) == len(step) for step in drawn)
    assert {len(step) for step in drawn} != {batch_size}
    assert len(set().union(*drawn)) == len(TRAIN)


def test_a_loss_that_explodes_names_the_slides(slides, tmp_path) -> None:
    config = config_of("task={kind: regression, target: tmb}", "optimizer.peak_lr=1e30")
    with pytest.raises(TrainingError, match=r"fold 0, step \d+: the .* is not finite. Its slides:"):
        train_fold(config, material_of(slides, config), SPLIT, tmp_path / "fold-0")


@pytest.mark.parametrize(("keep", "side"), [("best", "validation"), ("last", "tested")])
def test_a_model_that_explodes_at_an_epochs_end_is_told(keep, side, slides, tmp_path) -> None:
    """One step: the loss is finite before it, and the outputs are not after it."""
    how = ("optimizer.warmup_epochs=0", "batch_size=24", "epochs=1", f"choice.keep={keep}")
    config = config_of("task={kind: regression, target: tmb}", "optimizer.peak_lr=1e37", *how)
    split = SPLIT if keep == "best" else Split(name="0", train=TRAIN, test=TEST)
    told = rf"fold 0, after step 0: outputs of {side} slides are not finite: slide \d+ 0"
    with pytest.raises(TrainingError, match=told):
        train_fold(config, material_of(slides, config), split, tmp_path / "fold-0")


def test_a_look_without_a_value_is_not_waited_for(slides, tmp_path, monkeypatch) -> None:
    values = [float("nan"), 0.4, float("nan"), float("nan"), float("nan"), 0.6, 0.5, 0.5]
    told = iter(values)
    monkeypatch.setattr(finetune_fold, "first_score", lambda *_: ("auroc", next(told), 1))
    config = config_of("task.positive=mutated", "choice={by: score, patience: 2}")
    end = train_fold(config, material_of(slides, config), SPLIT, tmp_path / "fold-0")
    assert (end.steps, end.kept_step, end.ended_early) == (32, 24, True)


@pytest.mark.parametrize(
    "model",
    [
        "model.pooling=mean",
        "model.pooling={kind: gated_abmil, width: 8, hidden: 4}",
        "model={instance_weight: 0.3, pooling: {kind: clam_sb, width: 8, hidden: 4}}",
        "model={instance_weight: 0.3, pooling: {kind: clam_mb, width: 8, hidden: 4}}",
        "model.pooling={kind: transmil, width: 16, n_landmarks: 4}",
        "model={slide_encoder: {size: tiny}, shortcut: true}",
        "model={slide_encoder: {size: tiny}, pooling: null, route: cls, layers: [2, 4]}",
        "model={slide_encoder: {size: tiny}, pooling: null, route: mean}",
    ],
)
def test_every_model_is_trained_and_stored(model: str, slides, tmp_path) -> None:
    changes = ("task.positive=mutated", "epochs=1", "batch_size=12", model)
    config = load_recipe("abmil", FinetuneConfig, overrides=(*QUICK, *changes))
    material = material_of(slides, config)
    assert train_fold(config, material, SPLIT, tmp_path / "fold-0").is_finished
    assert 0 <= score_of(material, tmp_path / "fold-0")[1] <= 1


def test_marks_are_of_their_class() -> None:
    for row in two_classes(6):
        assert mark_of_class(row)[1] == (1 if row["label"] == "mutated" else -1)
