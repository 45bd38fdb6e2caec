import numpy as np
import pytest

from anlage.probes.splits.fixed import leave_one_group_out
from anlage.probes.splits.grouped import grouped_folds
from anlage.probes.splits.nested import inner_folds, inner_split
from anlage.probes.splits.split import Split

GROUP = np.repeat(np.arange(24), 5)
LABEL = np.array(["x", "y", "z"])[GROUP % 3]


def test_inner_split_divides_the_train_side_only() -> None:
    for split in grouped_folds(LABEL, GROUP, n_folds=4):
        inner = inner_split(split, LABEL, GROUP, share=0.25, seed=3)
        inner.refuse_cut_groups(GROUP)
        assert inner.test.tolist() == split.test.tolist()
        assert sorted([*inner.train, *inner.validation]) == split.train.tolist()
        assert set(LABEL[inner.validation]) == set(LABEL[inner.train]) == {"x", "y", "z"}
        again = inner_split(inner, LABEL, GROUP, share=0.25, seed=3)  # joins train and validation
        assert again.validation.tolist() == inner.validation.tolist()


def test_inner_split_never_reads_the_test_side() -> None:
    split = grouped_folds(LABEL, GROUP, n_folds=4)[0]
    other = LABEL.copy()
    other[split.test] = "of no matter"
    one, two = (inner_split(split, label, GROUP, seed=1) for label in (LABEL, other))
    assert one.validation.tolist() == two.validation.tolist()


def test_inner_folds_validate_each_train_row_once() -> None:
    split = grouped_folds(LABEL, GROUP, n_folds=4)[1]
    folds = inner_folds(split, LABEL, GROUP, n_folds=3)
    assert [fold.name for fold in folds] == ["1 inner 0", "1 inner 1", "1 inner 2"]
    assert sorted(row for fold in folds for row in fold.validation) == split.train.tolist()
    for fold in folds:
        fold.refuse_cut_groups(GROUP)
        assert fold.test.tolist() == split.test.tolist()
        assert sorted([*fold.train, *fold.validation]) == split.train.tolist()


def outer() -> Split:
    return leave_one_group_out(GROUP)[0]


CUT = Split(name="cut", train=np.arange(6), test=np.arange(6, 120))
LONE = np.where(GROUP == 5, "lone", LABEL)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: inner_split(outer(), LABEL, GROUP, share=1), "above 0 and below 1; got 1"),
        (lambda: inner_split(CUT, LABEL, GROUP), "one side only; got 1 on two, such as 1"),
        (lambda: inner_split(outer(), LONE, GROUP), "inner_split of 0: .* got 1 of class 'lone'"),
        (lambda: inner_split(outer(), LABEL[:5], GROUP), "labels needs one value for each of 120"),
        (lambda: inner_folds(outer(), LABEL, GROUP, n_folds=24), "2 to 23"),
        (lambda: inner_folds(outer(), LONE, GROUP), "class 'lone'"),
    ],
)
def test_refuses(call, match) -> None:
    with pytest.raises(ValueError, match=match):
        call()
