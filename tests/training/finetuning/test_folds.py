"""Folds of fine-tuning: whole patients, validation inside training, and what is refused."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from anlage.bags.slide_labels import SlideLabels
from anlage.errors import CatalogueError, LabelledDataError
from anlage.probes.splits.split import Split
from anlage.recipe import load_recipe
from anlage.training.finetuning.config import FinetuneConfig
from anlage.training.finetuning.folds import folds_of, table_of_folds
from anlage.training.finetuning.targets import Targets
from anlage.training.finetuning.task_config import Task

LAST = ("choice.keep=last", "choice.patience=null")


def config_of(*overrides: str) -> FinetuneConfig:
    return load_recipe("abmil", FinetuneConfig, overrides=overrides)


def slides(
    folder: Path,
    *,
    n_patients: int = 40,
    kind: str = "binary",
    column: list[object] | None = None,
    target: np.ndarray | None = None,
) -> tuple[Targets, SlideLabels]:
    """Two slides a patient; every fourth patient is positive; ten sites."""
    ids = [f"p{number // 2:03d}-{number % 2}" for number in range(2 * n_patients)]
    patient = np.array([slide_id[:4] for slide_id in ids])
    site = np.array([f"site {number // 2 % 10}" for number in range(2 * n_patients)])
    if target is None:
        target = np.array([[float(int(p[1:]) % 4 == 0)] for p in patient])
    task = {"kind": kind, "target": "y"}
    classes = ("no", "yes")
    if kind.startswith("survival"):
        task, classes = {"kind": kind, "time": "t", "event": "e"}, ()
    found = Targets(
        task=Task(**task),
        slide_ids=tuple(ids),
        patient_N=patient,
        site_N=site,
        target_NK=target,
        classes=classes if kind == "binary" else (),
    )
    values = column or [""] * len(ids)
    lines = ["slide_id,side", *(f"{s},{v}" for s, v in zip(ids, values, strict=True))]
    path = folder / "labels.csv"
    path.write_text("\n".join(lines) + "\n")
    return found, SlideLabels.open(path)


def assert_whole_patients(found: list[Split], targets: Targets) -> None:
    for split in found:
        sides = [set(targets.patient_N[rows]) for rows in split.sides.values()]
        assert sum(map(len, sides)) == len(set.union(*sides))


def test_each_slide_is_tested_once_and_no_patient_is_cut(tmp_path) -> None:
    targets, labels = slides(tmp_path)
    found = folds_of(config_of("folds.n=4"), targets, labels)
    assert_whole_patients(found, targets)
    assert Counter(np.concatenate([s.test for s in found]).tolist()) == Counter(range(80))
    for split in found:
        assert targets.target_NK[split.test, 0].mean() == pytest.approx(0.25, abs=0.06)
        assert len(split.validation) == pytest.approx(0.2 * 60, abs=2)


def test_the_last_epoch_needs_no_validation(tmp_path) -> None:
    targets, labels = slides(tmp_path)
    kept, chosen = (folds_of(config_of("folds.n=4", *more), targets, labels) for more in (LAST, ()))
    for one, other in zip(kept, chosen, strict=True):
        assert not len(one.validation)
        assert one.test.tolist() == other.test.tolist()
        inner = np.sort(np.concatenate([other.train, other.validation]))
        assert one.train.tolist() == inner.tolist()


def test_ten_random_divisions_have_gigapaths_shares(tmp_path) -> None:
    targets, labels = slides(tmp_path)
    found = folds_of(load_recipe_of_random(), targets, labels)
    assert_whole_patients(found, targets)
    assert len(found) == 10
    for split in found:
        shares = [len(rows) / 80 for rows in (split.train, split.validation, split.test)]
        assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.04)
    assert len({tuple(split.test) for split in found}) > 8


def load_recipe_of_random() -> FinetuneConfig:
    return config_of("folds={kind: random, n: 10, validation: 0.1, test: 0.2}", *LAST)


def test_no_site_is_trained_on_and_tested(tmp_path) -> None:
    targets, labels = slides(tmp_path)
    assert targets.site_N is not None
    for split in folds_of(config_of("folds={kind: sites, n: 5}", *LAST), targets, labels):
        assert not set(targets.site_N[split.train]) & set(targets.site_N[split.test])


def test_sites_are_needed_for_folds_of_sites(tmp_path) -> None:
    targets, labels = slides(tmp_path)
    without = Targets(**{n: getattr(targets, n) for n in Targets.__slots__} | {"site_N": None})
    with pytest.raises(CatalogueError, match="need a column 'site'"):
        folds_of(config_of("folds={kind: sites, n: 5}"), without, labels)


def test_a_column_gives_the_sides(tmp_path) -> None:
    side = ["train"] * 40 + ["val"] * 10 + ["test"] * 20 + [""] * 10
    targets, labels = slides(tmp_path, column=side)
    (split,) = folds_of(config_of("folds={kind: column, column: side}"), targets, labels)
    assert [len(rows) for rows in (split.train, split.validation, split.test)] == [40, 10, 20]


def test_a_column_gives_the_folds(tmp_path) -> None:
    targets, labels = slides(tmp_path, column=[number // 2 % 3 for number in range(80)])
    found = folds_of(config_of("folds={kind: column, column: side}", *LAST), targets, labels)
    assert [split.name for split in found] == ["0", "1", "2"]
    assert_whole_patients(found, targets)


def test_folds_are_read_back_as_they_were_written(tmp_path) -> None:
    targets, labels = slides(tmp_path)
    made = folds_of(config_of("folds.n=3"), targets, labels)
    path = tmp_path / "splits.csv"
    path.write_text(table_of_folds(made, targets).text)
    again = folds_of(config_of(), targets, labels, splits=path)
    for one, other in zip(made, again, strict=True):
        assert one.name == other.name
        for side in ("train", "validation", "test"):
            np.testing.assert_array_equal(getattr(one, side), getattr(other, side))


def test_patients_may_name_the_splits_and_others_stay_out(tmp_path, caplog) -> None:
    targets, labels = slides(tmp_path)
    path = tmp_path / "splits.tsv"
    sides = [("train", "test")[number % 2] for number in range(39)]
    path.write_text(
        "case_id\tfold_0\n" + "".join(f"p{n:03d}\t{side}\n" for n, side in enumerate(sides))
    )
    (split,) = folds_of(config_of(*LAST), targets, labels, splits=path)
    assert (len(split.train), len(split.test)) == (40, 38)
    assert "does not name 1 of the case_ids, such as p039" in caplog.text


def test_a_patient_in_two_folds_is_refused(tmp_path) -> None:
    targets, labels = slides(tmp_path, column=["train", "test"] * 40)
    with pytest.raises(CatalogueError, match="on one side only; got 40 on two, such as p000"):
        folds_of(config_of("folds={kind: column, column: side}"), targets, labels)
    path = tmp_path / "splits.csv"
    path.write_text(
        "slide_id,split\n"
        + "".join(f"{s},{'train' if n % 2 else 'test'}\n" for n, s in enumerate(targets.slide_ids))
    )
    with pytest.raises(LabelledDataError, match="on one side only"):
        folds_of(config_of(), targets, labels, splits=path)


def test_one_class_in_a_fold_is_refused(tmp_path) -> None:
    side = ["train" if number // 2 % 4 else "test" for number in range(80)]
    targets, labels = slides(tmp_path, column=side)
    with pytest.raises(CatalogueError, match="training side has one class only, 'no'"):
        folds_of(config_of("folds={kind: column, column: side}", *LAST), targets, labels)


def test_one_class_on_the_side_that_chooses_is_refused(tmp_path) -> None:
    side = ["train"] * 40 + ["test"] * 32 + ["train"] * 2 + ["val"] * 6
    targets, labels = slides(tmp_path, column=side)
    how = "folds={kind: column, column: side}"
    assert folds_of(config_of(how), targets, labels)
    with pytest.raises(CatalogueError, match="validation side has one class only, 'no'.*choice.by"):
        folds_of(config_of(how, "choice.by=score"), targets, labels)


def test_all_censored_in_a_fold_is_refused(tmp_path) -> None:
    target = np.array([[1.0 + number, number > 75] for number in range(80)])
    side = ["train"] * 60 + ["test"] * 20
    targets, labels = slides(tmp_path, kind="survival_cox", target=target, column=side)
    config = config_of("folds={kind: column, column: side}", *LAST)
    with pytest.raises(CatalogueError, match="all 60 training slides are censored"):
        folds_of(config, targets, labels)


def test_no_event_to_choose_by_is_refused(tmp_path) -> None:
    target = np.array([[1.0 + number, number < 40] for number in range(80)])
    side = ["train"] * 60 + ["val"] * 10 + ["test"] * 10
    targets, labels = slides(tmp_path, kind="survival_cox", target=target, column=side)
    with pytest.raises(CatalogueError, match="validation slides are censored"):
        folds_of(config_of("folds={kind: column, column: side}"), targets, labels)


SIDES = ["train"] * 60 + ["val"] * 10 + ["test"] * 10
LAST_EVENT = [[1.0 + number, number < 60 or number == 69] for number in range(80)]
ONE_VALUE = [[number % 3 if number < 60 else 2] for number in range(80)]
ONE_SIDE = [[number % 3 == 0, 0.0] if number < 60 else [1, 1] for number in range(80)]


@pytest.mark.parametrize(
    ("kind", "target", "by"),
    [
        ("survival_cox", LAST_EVENT, "score"),
        ("survival_cox", LAST_EVENT, "loss"),
        ("survival_discrete", LAST_EVENT, "score"),
        ("ordinal", ONE_VALUE, "score"),
        ("regression", ONE_VALUE, "score"),
        ("multi_label", ONE_SIDE, "score"),
    ],
)
def test_a_side_that_chooses_without_a_value_is_refused(kind, target, by, tmp_path) -> None:
    """Each epoch's look would have no value, and the first would stay the best."""
    given = np.array(target, dtype=np.float64)
    targets, labels = slides(tmp_path, kind=kind, target=given, column=SIDES)
    how = ("folds={kind: column, column: side}", f"choice.by={by}")
    with pytest.raises(CatalogueError, match=r"fold test: .* has no value on its 10 validation"):
        folds_of(config_of(*how), targets, labels)
    if kind != "survival_cox":
        assert folds_of(config_of(how[0], "choice.by=loss"), targets, labels)


def test_the_advised_remedies_work(tmp_path) -> None:
    target = np.array([[1.0 + number, number < 40] for number in range(80)])
    targets, labels = slides(tmp_path, kind="survival_cox", target=target, column=SIDES)
    how = "folds={kind: column, column: side}"
    with pytest.raises(CatalogueError, match="censored") as refused:
        folds_of(config_of(how), targets, labels)
    (remedy,) = re.findall(r"choice=\{.*?\}", str(refused.value))
    for recipe in ("abmil", "uni-abmil"):
        changes = [how, remedy, "task={kind: survival_cox, target: null, time: t, event: e}"]
        config = load_recipe(recipe, FinetuneConfig, overrides=[*changes, "batch_size=8"])
        assert folds_of(config, targets, labels)


def test_fewer_patients_than_folds_are_refused(tmp_path) -> None:
    targets, labels = slides(tmp_path, n_patients=5)
    with pytest.raises(CatalogueError, match="n_folds needs to be 2 to 5"):
        folds_of(config_of("folds.n=6"), targets, labels)


def test_an_unknown_file_is_refused(tmp_path) -> None:
    targets, labels = slides(tmp_path)
    with pytest.raises(LabelledDataError, match="cannot be read"):
        folds_of(config_of(), targets, labels, splits=tmp_path / "none.csv")


def test_patterns_of_labels_are_spread(tmp_path) -> None:
    target = np.array([[n // 2 % 2, n // 4 % 2, np.nan if n // 2 % 5 else 1.0] for n in range(80)])
    targets, labels = slides(tmp_path, kind="multi_label", target=target)
    for split in folds_of(config_of("folds.n=4", *LAST), targets, labels):
        for label in range(2):
            assert target[split.test, label].mean() == pytest.approx(0.5, abs=0.11)
