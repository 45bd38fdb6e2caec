import numpy as np
import pytest

from anlage.probes.splits.fixed import leave_one_group_out
from anlage.probes.splits.grouped import grouped_folds
from anlage.probes.splits.nested import inner_split
from anlage.probes.splits.tables import (
    parse_split_table,
    splits_from_table,
    splits_to_table,
)

GROUP = np.repeat([f"p{number:02}" for number in range(12)], 3)
LABEL = np.repeat(np.arange(12) % 2, 3)
WIDE = "case_id\tslide_id\tgrade\tfold_0\tfold_10\tfold_9\nA\ta1\t1\ttrain\ttest\tval\n"
WIDE += "A\ta2\t1\ttrain\ttest\tval\nB\tb1\t2\ttest\ttrain\ttrain\nC\tc1\t2\tVal\t\ttest\n"


def rows(split):
    return {name: side.tolist() for name, side in split.sides.items()}


def test_there_and_back() -> None:
    splits = [inner_split(split, LABEL, GROUP) for split in grouped_folds(LABEL, GROUP, n_folds=11)]
    table = splits_to_table(splits, GROUP)
    assert table.text.startswith("patient_id,fold_0,fold_1,")
    again = parse_split_table(table.text)
    assert again == table
    assert again.sha256 == table.sha256
    back = splits_from_table(again, GROUP, GROUP)
    assert [split.name for split in back] == [str(number) for number in range(11)]
    assert [rows(split) for split in back] == [rows(split) for split in splits]


def test_order_of_splits_and_of_columns_does_not_change_the_hash() -> None:
    splits = leave_one_group_out([f"p{number}" for number in range(12)])  # p1, p10, p11, p2 ...
    key = np.arange(12)
    table = splits_to_table(splits, key)
    assert list(table.columns)[1:3] == ["fold_p1", "fold_p2"]
    assert splits_to_table(splits[::-1], key).sha256 == table.sha256
    assert parse_split_table(table.text) == table
    swapped = "id,fold_01,fold_1\na,train,test\nb,test,train\n"
    other = "id,fold_1,fold_01\na,test,train\nb,train,test\n"
    assert parse_split_table(swapped).sha256 == parse_split_table(other).sha256


def test_reads_patho_benchs_form() -> None:
    table = parse_split_table(WIDE)
    assert (table.key_column, table.keys) == ("slide_id", ("a1", "a2", "b1", "c1"))
    slide, patient = ["c1", "a1", "a2", "b1", "b1"], ["C", "A", "A", "B", "B"]
    splits = splits_from_table(table, slide, patient)
    assert [split.name for split in splits] == ["0", "9", "10"]
    assert rows(splits[0]) == {"train": [1, 2], "val": [0], "test": [3, 4]}
    assert rows(splits[1]) == {"train": [3, 4], "val": [1, 2], "test": [0]}
    assert rows(splits[2]) == {"train": [3, 4], "test": [1, 2]}


def test_a_table_hashes_the_same_whatever_order_separator_or_other_columns() -> None:
    header, *lines = WIDE.splitlines()
    turned = "\n".join([header, *reversed(lines)]).replace("\t", ",").replace("grade", "note")
    assert parse_split_table(turned).sha256 == parse_split_table(WIDE).sha256
    other = WIDE.replace("a2\t1\ttrain", "a2\t1\t")
    assert parse_split_table(other).sha256 != parse_split_table(WIDE).sha256


def test_a_fold_column_and_a_split_column() -> None:
    text = "patient_id,fold\np1,b\np2,a\np3,b\n"
    key = np.array(["p3", "p2", "p2", "p1"])
    splits = splits_from_table(parse_split_table(text), key, key)
    assert [(split.name, split.test.tolist()) for split in splits] == [
        ("a", [1, 2]),
        ("b", [0, 3]),
    ]
    text = "\ufeffpatient_id,split\np1,Training\np2,testing\np3,valid\n"
    (split,) = splits_from_table(parse_split_table(text), key, key)
    assert (split.name, rows(split)) == ("test", {"train": [3], "val": [0], "test": [1, 2]})


def test_what_only_one_has_is_left_out_if_accepted() -> None:
    table = parse_split_table("patient_id,split\np1,train\np2,test\nno tiles,test\n")
    key = ["p1", "p2", "not in the table"]
    (split,) = splits_from_table(table, key, key, is_exact=False)
    assert rows(split) == {"train": [0], "test": [1]}


def test_keys_are_names_whatever_their_type_and_spaces() -> None:
    table = parse_split_table("patient_id,split\n1,train\n2,test\n")
    for key in ([1.0, 2.0], [1, 2], ["1 ", " 2"]):
        (split,) = splits_from_table(table, key, key)
        assert rows(split) == {"train": [0], "test": [1]}
        assert splits_to_table([split], key).keys == ("1", "2")


def splits_of(text, key, group=None, **settings):
    return splits_from_table(parse_split_table(text, **settings), key, group or key)


TWO = "patient_id,split\np1,train\np2,test\n"


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: splits_of(TWO, ["p1", "p2", "p3"]), "got 1 that the table lacks, such as p3"),
        (lambda: splits_of(TWO, ["p1", "p1"]), "got 1 that the data lacks, such as p2"),
        (lambda: splits_of(TWO, ["p1", "p2"], ["x", "x"]), "one side only; got 1 .* as x"),
        (lambda: splits_of(TWO.replace("test", "val"), ["p1", "p2"]), "got 1 and 0"),
        (lambda: splits_of(WIDE, ["A", "B"], key_column="case_id"), "such as A.*slides as the key"),
        (lambda: splits_of(TWO, ["p1"], key_column="slide"), "slide; got patient_id, split"),
        (lambda: splits_of(TWO.replace("train", "0"), ["p1"]), "got '0' for p1"),
        (lambda: splits_of(TWO.replace("p1,", ","), ["p1"]), "got none in row 1"),
        (lambda: splits_of("patient_id,side\np1,train\n", ["p1"]), "fold_0, fold_1"),
        (lambda: splits_of("patient_id,split\n", ["p1"]), "got none"),
        (lambda: splits_of(TWO.replace("test", "test,1"), ["p1"]), "as many values as columns"),
        (lambda: splits_to_table([], GROUP), "different names; got \\[\\]"),
        (
            lambda: splits_to_table(grouped_folds(LABEL, GROUP, n_folds=2), np.arange(36) // 2),
            "one side only",
        ),
    ],
)
def test_refuses(call, match) -> None:
    with pytest.raises(ValueError, match=match):
        call()
