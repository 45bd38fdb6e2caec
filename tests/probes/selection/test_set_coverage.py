import numpy as np
import pytest

from anlage.probes.selection.set_coverage import set_coverage

SETS = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 1], [1, 1, 1]], dtype=bool)
TRUTH = np.array(["x", "x", "y", "y", "x"])
GROUP = np.array(["p", "p", "p", "q", "r"])


def test_counts_by_hand() -> None:
    found = set_coverage(SETS, TRUTH, ["x", "y", "z"], group_N=GROUP)
    assert found.rows == 4 / 5
    assert found.groups == pytest.approx((2 / 3 + 1 + 1) / 3)
    assert found.whole_groups == pytest.approx(2 / 3)
    assert (found.n_rows, found.n_groups) == (5, 3)
    assert found.mean_size == pytest.approx(8 / 5)
    assert found.n_of_size == (1, 1, 2, 1)
    assert list(found.by_class) == ["x", "y"]
    y = found.by_class["y"]
    assert (y.rows, y.groups, y.n_rows, y.n_groups) == (0.5, 0.5, 2, 2)
    assert found.by_class["x"].n_groups == 2


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: set_coverage(SETS[:4], TRUTH, list("xyz"), group_N=GROUP), "got shape \\(4, 3\\)"),
        (lambda: set_coverage(SETS, TRUTH, list("xyz"), group_N=GROUP[:4]), "groups needs one"),
        (lambda: set_coverage(SETS, TRUTH, list("xwz"), group_N=GROUP), "\\['y'\\]"),
    ],
)
def test_refuses(call, match) -> None:
    with pytest.raises(ValueError, match=match):
        call()
