import pytest

from anlage.errors import LabelledDataError
from anlage.evaluation.labelled_tiles import LabelledTiles
from anlage.evaluation.protocol import chosen_protocol, never_trained_on, splits_of


def open_tiles(path):
    return LabelledTiles.open(path)


def test_auto_takes_folds_then_single_groups_then_folds_of_groups(make_tiles) -> None:
    plain = open_tiles(make_tiles())
    assert chosen_protocol(plain, "auto") == "leave-one-group-out"
    assert len(splits_of(plain, "auto", seed=0, k=3)) == 8
    folded = open_tiles(make_tiles(columns=("case", "fold")))
    assert chosen_protocol(folded, "auto") == "folds"
    assert [split.name for split in splits_of(folded, "auto", seed=0, k=3)] == ["0", "1"]
    many = open_tiles(make_tiles(columns=("fold",), n_cases=26, size_px=2))
    assert chosen_protocol(many, "auto") == "folds"
    ungrouped = open_tiles(make_tiles(columns=(), n_cases=26, size_px=2))
    assert chosen_protocol(ungrouped, "auto") == "grouped-folds"
    assert len(splits_of(ungrouped, "auto", seed=0, k=3)) == 5


def test_train_test_is_asked_for_by_name(make_tiles) -> None:
    tiles = open_tiles(make_tiles(columns=("case", "split")))
    (split,) = splits_of(tiles, "train-test", seed=0, k=3)
    assert (len(split.train), len(split.test)) == (16, 16)


def test_validation_rows_train_since_nothing_is_chosen_on_them(make_tiles, change_rows) -> None:
    path = make_tiles(columns=("case", "split"))
    change_rows(path, lambda rows: [r | ({"split": "val"} if r["case"] == "c1" else {})
                                    for r in rows])  # fmt: skip
    (split,) = splits_of(open_tiles(path), "train-test", seed=0, k=3)
    assert (len(split.train), len(split.test), len(split.validation)) == (16, 16, 0)


def test_a_class_of_one_case_is_never_trained_on(make_tiles, change_rows) -> None:
    path = make_tiles()

    def rename(rows):
        for row in rows:
            row["label"] = "lone" if row["case"] == "c5" else row["label"]

    tiles = open_tiles(change_rows(path, rename))
    assert never_trained_on(tiles, splits_of(tiles, "auto", seed=0, k=3)) == ["lone"]


@pytest.mark.parametrize(
    ("given", "protocol", "k", "match"),
    [
        ({}, "folds", 3, "needs a column 'fold' in the CSV"),
        ({}, "train-test", 3, "needs a column 'split'"),
        ({}, "auto", 29, "got k=29, and 28 tiles in split c0"),
        ({}, "auto", 0, "got k=0"),
        ({"n_cases": 2}, "auto", 1, "two classes to train on; split c0 has"),
        ({"n_cases": 3, "columns": ("case", "split")}, "train-test", 1, "split test has"),
    ],
)
def test_refuses(make_tiles, given, protocol, k, match) -> None:
    tiles = open_tiles(make_tiles(**given))
    with pytest.raises(LabelledDataError, match=match):
        splits_of(tiles, protocol, seed=0, k=k)


def test_refuses_to_test_on_one_case(make_tiles, change_rows) -> None:
    path = make_tiles(columns=("case", "split"))
    change_rows(path, lambda rows: [r | {"split": "test" if r["case"] == "c1" else "train"}
                                    for r in rows])  # fmt: skip
    with pytest.raises(LabelledDataError, match="two cases or more to test on; got 1"):
        splits_of(open_tiles(path), "train-test", seed=0, k=3)
