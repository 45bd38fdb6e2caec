import numpy as np
import pytest

from anlage.probes.splits import fixed
from anlage.probes.splits.fixed import given_folds, leave_one_group_out, train_test

GROUP = np.array(["c", "a", "a", "b", "c", "d"])


def test_leave_one_group_out_tests_each_group_once() -> None:
    splits = leave_one_group_out(GROUP)
    assert [split.name for split in splits] == ["a", "b", "c", "d"]
    assert [split.test.tolist() for split in splits] == [[1, 2], [3], [0, 4], [5]]
    for split in splits:
        assert sorted([*split.train, *split.test]) == list(range(6))


def test_more_splits_than_memory_holds_are_refused_at_once(monkeypatch) -> None:
    monkeypatch.setattr(fixed, "MOST_ROWS", 23)  # 4 splits of 6 rows are 24
    with pytest.raises(ValueError, match="4 splits of 6 rows .* Use grouped_folds"):
        leave_one_group_out(GROUP)
    assert len(given_folds([0, 1, 1, 0, 0, 1], GROUP)) == 2


def test_given_folds() -> None:
    splits = given_folds([0, 1, 1, 0, 0, 1], GROUP)
    assert [(split.name, split.test.tolist()) for split in splits] == [
        ("0", [0, 3, 4]),
        ("1", [1, 2, 5]),
    ]


def test_train_test_knows_val_and_leaves_other_sides_out() -> None:
    (split,) = train_test(["test", "train", "train", "val", "test", "held"], GROUP)
    assert split.train.tolist() == [1, 2]
    assert split.validation.tolist() == [3]
    assert split.test.tolist() == [0, 4]


def test_train_test_reads_sides_as_tables_do() -> None:
    (split,) = train_test(["Test", "training", "train", "validation", "testing", "x"], GROUP)
    assert split.train.tolist() == [1, 2]
    assert split.validation.tolist() == [3]
    assert split.test.tolist() == [0, 4]


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: leave_one_group_out(["a", "a"]), "two different values or more"),
        (lambda: leave_one_group_out([]), "two different values or more"),
        (lambda: leave_one_group_out([1.0, float("nan")]), "none in 1 rows, the first is row 1"),
        (lambda: given_folds([0] * 6, GROUP), "two different values or more"),
        (lambda: given_folds([0, 1, 0, 2, 1, 2], GROUP), "got 2 on two, such as a, c"),
        (lambda: given_folds([0, 1], GROUP), "groups needs one value for each of 2 rows"),
        (lambda: train_test(["train", "test", "train", "val", "train", "test"], GROUP), "as a"),
        (lambda: train_test(["train"] * 6, GROUP), "got 6 and 0.*Rename"),
    ],
)
def test_refuses(call, match) -> None:
    with pytest.raises(ValueError, match=match):
        call()
