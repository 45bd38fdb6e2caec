import numpy as np
import pytest

from anlage.probes.splits.split import Split, group_name, groups_on_two_sides, refuse_cut_groups

GROUP = np.array(["c", "a", "a", "b", "c", "d"])


def split_of(train, test, validation=()):
    rows = [np.array(side, dtype=np.int64) for side in (train, test, validation)]
    return Split(name="s", train=rows[0], test=rows[1], validation=rows[2])


def test_sides_are_named_and_validation_is_empty_by_default() -> None:
    assert len(Split(name="s", train=np.array([0]), test=np.array([1])).validation) == 0
    assert list(split_of([0], [1]).sides) == ["train", "test"]
    assert list(split_of([0], [1], [2]).sides) == ["train", "val", "test"]


def test_groups_on_two_sides_are_named() -> None:
    assert groups_on_two_sides(GROUP, [0, 1, 1, 2, 0, 2]) == []
    assert groups_on_two_sides(GROUP, [0, 1, 0, 2, 1, 2]) == ["a", "c"]


def test_a_group_is_known_by_its_name_not_by_its_type_or_spaces() -> None:
    assert groups_on_two_sides(["a", "a "], [0, 1]) == ["a"]
    assert groups_on_two_sides(np.array([7, "7", 8.0], dtype=object), [0, 1, 2]) == ["7"]
    assert [group_name(name) for name in (8.0, 8, " 8", 8.5, "8.0")] == [
        "8",
        "8",
        "8",
        "8.5",
        "8.0",
    ]


def test_rows_on_no_side_do_not_cut_a_group() -> None:
    split_of([0, 4], [1], [3]).refuse_cut_groups(GROUP)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: split_of([], [1]), "train and on the test side; got 0 and 1"),
        (lambda: split_of([0], []), "got 1 and 0"),
        (lambda: split_of([0, 1], [1]), "each row once.*got row 1"),
        (lambda: split_of([0, 3], [1], [3]), "got row 3"),
        (lambda: split_of([0, -1], [1]), "got row -1"),
        (lambda: split_of([0, 1], [2]).refuse_cut_groups(GROUP), "1 on two, such as a"),
        (lambda: split_of([0], [1], [2]).refuse_cut_groups(GROUP), "such as a"),
        (lambda: split_of([0], [6]).refuse_cut_groups(GROUP), "got 6 groups and row 6"),
        (lambda: refuse_cut_groups("who", GROUP, [0, 1]), "one value for each of 2 rows"),
    ],
)
def test_refuses(call, match) -> None:
    with pytest.raises(ValueError, match=match):
        call()
