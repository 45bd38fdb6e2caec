"""Labels as targets: every kind of task, what is left out, what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from marked_bags import write_marked

from anlage.bags.loader import BagSet
from anlage.bags.slide_labels import SlideLabels
from anlage.errors import CatalogueError
from anlage.training.finetuning.targets import Targets, targets_of
from anlage.training.finetuning.task_config import Task


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> BagSet:
    """Bags of s0 to s7, of 6, 7, 8, 9, 10, 6, 7 and 8 tiles."""
    folder = tmp_path_factory.mktemp("bags")
    rows = [{"slide_id": f"s{number}"} for number in range(8)]
    return BagSet.open(write_marked(folder, rows, lambda _: [1.0]).bags)


def targets(
    bags: BagSet, folder: Path, columns: dict[str, list[object]], **task: object
) -> Targets:
    n = len(next(iter(columns.values())))
    names = {"slide_id": [f"s{number}" for number in range(n)]} | columns
    lines = [
        ",".join(names),
        *(",".join(map(str, row)) for row in zip(*names.values(), strict=True)),
    ]
    path = folder / "labels.csv"
    path.write_text("\n".join(lines) + "\n")
    return targets_of(Task(**task), SlideLabels.open(path), bags)


def test_classes_are_numbered_in_order(bags, tmp_path) -> None:
    found = targets(
        bags, tmp_path, {"kind": ["b", "a", "", "c", "b"]}, kind="multi_class", target="kind"
    )
    assert found.classes == ("a", "b", "c")
    assert found.slide_ids == ("s0", "s1", "s3", "s4")
    assert found.target_NK[:, 0].tolist() == [1, 0, 2, 1]
    assert found.left_out == {"no label": ["s2"]}


def test_slides_of_other_classes_are_passed_over_by_name(bags, tmp_path) -> None:
    columns = {"kind": ["LUAD", "LUSC", "MESO", "LUAD"]}
    task = {"kind": "binary", "target": "kind", "classes": ["LUAD", "LUSC"]}
    found = targets(bags, tmp_path, columns, **task)
    assert found.left_out == {"of another class, MESO": ["s2"]}
    assert found.target_NK[:, 0].tolist() == [0, 1, 0]


def test_the_positive_class_comes_second(bags, tmp_path) -> None:
    columns = {"kind": ["yes", "no", "yes"]}
    found = targets(bags, tmp_path, columns, kind="binary", target="kind", positive="no")
    assert found.classes == ("yes", "no")


def test_a_positive_value_that_no_slide_has_is_refused(bags, tmp_path) -> None:
    columns = {"kind": ["yes", "no", "yes"]}
    with pytest.raises(CatalogueError, match="needs the positive value 'maybe'; got no, yes. Set"):
        targets(bags, tmp_path, columns, kind="binary", target="kind", positive="maybe")


def test_numbers_are_cut_at_the_threshold(bags, tmp_path) -> None:
    columns = {"tmb": [9.9, 10, 11, ""]}
    found = targets(bags, tmp_path, columns, kind="binary", target="tmb", threshold=10)
    assert found.classes == ("low", "high")
    assert found.target_NK[:, 0].tolist() == [0, 1, 1]
    assert found.task.name == "tmb >= 10"


def test_grades_are_whole_numbers_in_order(bags, tmp_path) -> None:
    columns = {"isup": [10, 2, 0, "2.0"]}
    found = targets(bags, tmp_path, columns, kind="ordinal", target="isup")
    assert found.classes == ("0", "2", "10")
    assert found.target_NK[:, 0].tolist() == [2, 1, 0, 1]


def test_grades_in_words_need_their_order(bags, tmp_path) -> None:
    columns = {"grade": ["low", "high", "low"]}
    with pytest.raises(CatalogueError, match=r"grades that are integers; got high, low.*classes="):
        targets(bags, tmp_path, columns, kind="ordinal", target="grade")
    task = {"kind": "ordinal", "target": "grade", "classes": ["low", "high"]}
    assert targets(bags, tmp_path, columns, **task).target_NK[:, 0].tolist() == [0, 1, 0]


def test_labels_may_be_missing_one_by_one(bags, tmp_path) -> None:
    columns = {"TP53": [1, 0, "", ""], "KRAS": ["true", "", "no", ""]}
    found = targets(bags, tmp_path, columns, kind="multi_label", target=("TP53", "KRAS"))
    np.testing.assert_array_equal(found.target_NK, [[1, 1], [0, np.nan], [np.nan, 0]])
    assert found.left_out == {"no label": ["s3"]}


def test_time_and_event_are_read(bags, tmp_path) -> None:
    columns = {"months": [3.5, 0, 7, ""], "dead": [1, 0, 1, 1]}
    found = targets(bags, tmp_path, columns, kind="survival_cox", time="months", event="dead")
    np.testing.assert_array_equal(found.target_NK, [[3.5, 1], [0, 0], [7, 1]])


def test_the_largest_slide_of_a_patient_is_taken(bags, tmp_path) -> None:
    """Bags have 6, 7, 8, 9, 10, 6 tiles; the first by name of equals."""
    columns = {"patient_id": ["p", "p", "q", "q", "r", "s"], "y": [1, 1, 0, 0, 1, 0]}
    found = targets(bags, tmp_path, columns, kind="binary", target="y", unit="largest_slide")
    assert found.slide_ids == ("s1", "s3", "s4", "s5")
    assert found.left_out == {"smaller than the patient's largest slide": ["s0", "s2"]}


def test_slides_of_a_patient_may_not_contradict_each_other(bags, tmp_path) -> None:
    columns = {"patient_id": ["p", "p", "q"], "y": [1, 0, 0]}
    with pytest.raises(CatalogueError, match="patient 'p' different labels"):
        targets(bags, tmp_path, columns, kind="binary", target="y", unit="patient")
    assert len(targets(bags, tmp_path, columns, kind="binary", target="y")) == 3


@pytest.mark.parametrize(
    ("columns", "task", "told"),
    [
        ({"y": [1, 0]}, {"kind": "binary", "target": "z"}, "needs a column 'z'"),
        ({"y": ["a", "b", "c"]}, {"kind": "binary", "target": "y"}, "two values; got 3: a, b, c"),
        ({"y": ["a", "a"]}, {"kind": "multi_class", "target": "y"}, "2 to 1000 classes; got 1"),
        ({"y": ["", ""]}, {"kind": "regression", "target": "y"}, "2 with no label"),
        ({"y": ["x", 1]}, {"kind": "regression", "target": "y"}, "needs finite numbers; got 'x'"),
        (
            {"y": ["a", "a", ""]},
            {"kind": "binary", "target": "y", "classes": ["a", "b"]},
            "no slide with a bag of class b",
        ),
        ({"y": [1, 2]}, {"kind": "binary", "target": "y", "threshold": 5}, "of class high"),
        ({"y": [1, "maybe"]}, {"kind": "multi_label", "target": "y"}, "1, 0 or nothing"),
        ({"y": [1, 1]}, {"kind": "multi_label", "target": "y"}, "with and without 'y'"),
        (
            {"t": [1, 2], "e": [0, 0]},
            {"kind": "survival_cox", "time": "t", "event": "e"},
            "needs an event or more in 'e'; all 2 slides are censored",
        ),
        (
            {"t": [1, -2], "e": [0, 1]},
            {"kind": "survival_discrete", "time": "t", "event": "e"},
            "0 or more; got -2 for slide 's1'",
        ),
        (
            {"t": [1, 2], "e": [0, 3]},
            {"kind": "survival_cox", "time": "t", "event": "e"},
            "1 .event. and 0 .censored.; got 3",
        ),
        (
            {"patient_id": ["p", "p"], "y": [1, 0]},
            {"kind": "binary", "target": "y"},
            "two patients or more with a bag and a label; got 1",
        ),
    ],
)
def test_labels_that_teach_nothing_are_refused(bags, tmp_path, columns, task, told) -> None:
    with pytest.raises(CatalogueError, match=told):
        targets(bags, tmp_path, columns, **task)


def test_classes_that_yaml_made_numbers_of_are_those_of_the_column(bags, tmp_path) -> None:
    task = Task(kind="binary", target="y", classes=[3.0, 4.0])  # type: ignore[arg-type]
    assert task.classes == ("3", "4")
    assert Task(kind="binary", target="y", positive=4.0).positive == "4"  # type: ignore[arg-type]


def test_bags_are_gone_through_once_for_all_slides(bags, tmp_path) -> None:
    class Counted(tuple):
        n_times = 0

        def __iter__(self):
            Counted.n_times += 1
            return super().__iter__()

    counted = SimpleNamespace(slide_ids=Counted(bags.slide_ids), n_tiles=bags.n_tiles)
    rows = [f"{slide_id},{number % 2}" for number, slide_id in enumerate(bags.slide_ids)]
    path = tmp_path / "labels.csv"
    path.write_text("\n".join(["slide_id,y", *rows]))
    task = Task(kind="binary", target="y", unit="largest_slide")
    targets_of(task, SlideLabels.open(path), counted)
    assert Counted.n_times <= 2
