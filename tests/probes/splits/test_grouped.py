import numpy as np
import pytest

from anlage.probes.splits.grouped import (
    given_folds,
    grouped_folds,
    groups_on_two_sides,
    leave_one_group_out,
    train_test,
)

GROUP = np.array(["c", "a", "a", "b", "c", "d"])


def test_leave_one_group_out_tests_each_group_once() -> None:
    splits = leave_one_group_out(GROUP)
    assert [split.name for split in splits] == ["a", "b", "c", "d"]
    assert [split.test.tolist() for split in splits] == [[1, 2], [3], [0, 4], [5]]
    for split in splits:
        assert sorted([*split.train, *split.test]) == list(range(6))


def test_given_folds() -> None:
    splits = given_folds([0, 1, 1, 0, 0, 1], GROUP)
    assert [(split.name, split.test.tolist()) for split in splits] == [
        ("0", [0, 3, 4]),
        ("1", [1, 2, 5]),
    ]


def test_train_test_leaves_other_sides_out() -> None:
    (split,) = train_test(["test", "train", "train", "val", "test", "train"], GROUP)
    assert split.train.tolist() == [1, 2, 5]
    assert split.test.tolist() == [0, 4]


def test_grouped_folds_keep_groups_spread_classes_and_follow_the_seed() -> None:
    group = np.repeat(np.arange(30), 4)
    label = group % 3
    folds = [grouped_folds(label, group, n_folds=5, seed=seed) for seed in (0, 0, 1)]
    tests = [[split.test.tolist() for split in splits] for splits in folds]
    assert tests[0] == tests[1] != tests[2]
    assert sorted(row for test in tests[0] for row in test) == list(range(120))
    for split in folds[0]:
        assert not set(group[split.train]) & set(group[split.test])
        assert np.bincount(label[split.test]).tolist() == [8, 8, 8]


def test_groups_on_two_sides_are_named() -> None:
    assert groups_on_two_sides(GROUP, [0, 1, 1, 2, 0, 2]) == []
    assert groups_on_two_sides(GROUP, [0, 1, 0, 2, 1, 2]) == ["a", "c"]


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: leave_one_group_out(["a", "a"]), "two different values or more"),
        (lambda: leave_one_group_out([]), "two different values or more"),
        (lambda: given_folds([0] * 6, GROUP), "two different values or more"),
        (lambda: given_folds([0, 1, 0, 2, 1, 2], GROUP), "got 2 on two, such as a, c"),
        (lambda: given_folds([0, 1], GROUP), "groups needs one value for each of 2 rows"),
        (lambda: train_test(["train", "test", "train", "val", "train", "test"], GROUP), "as a"),
        (lambda: train_test(["train"] * 6, GROUP), "got 6 and 0.*Rename"),
        (lambda: grouped_folds([0] * 6, GROUP, n_folds=5), "2 to 4, the number of groups"),
        (lambda: grouped_folds([0] * 5, GROUP, n_folds=2), "labels needs one value"),
    ],
)
def test_refuses(call, match) -> None:
    with pytest.raises(ValueError, match=match):
        call()
