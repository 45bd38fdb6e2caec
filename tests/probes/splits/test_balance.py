import numpy as np
import pytest

from anlage.probes.splits.balance import balance_of
from anlage.probes.splits.fixed import given_folds

GROUP = np.array(["a", "a", "b", "c", "d", "e"])
LABEL = np.array(["x", "y", "x", "x", "y", "z"])


def test_counts_groups_of_classes_by_hand() -> None:
    splits = given_folds([0, 0, 0, 1, 1, 1], GROUP)
    balance = balance_of(splits, LABEL, GROUP)
    assert balance.class_C.tolist() == ["x", "y", "z"]
    assert balance.n_groups_SC.tolist() == [[2, 1, 0], [1, 1, 1]]
    assert balance.share_SC[:, 0].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert balance.worst == 0.5  # z lies in fold 1 only
    assert balance.never_tested == {"0": ["z"]}
    assert balance.never_trained == {"1": ["z"]}


def test_refuses_a_cut_group() -> None:
    with pytest.raises(ValueError, match="such as b"):
        balance_of(given_folds([0, 0, 0, 1, 1, 1], GROUP), LABEL, ["a", "a", "b", "e", "d", "b"])
