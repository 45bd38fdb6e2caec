import numpy as np
import pytest

from anlage.probes.metrics.counts import group_counts


def test_counts_by_group_and_class() -> None:
    counts = group_counts(["x", "y", "x", "y", "y"], ["x", "y", "y", "x", "y"], [2, 2, 1, 1, 1])
    assert counts.group_G.tolist() == [1, 2]
    assert counts.class_C.tolist() == ["x", "y"]
    assert counts.total_GC.tolist() == [[1, 2], [1, 1]]
    assert counts.correct_GC.tolist() == [[0, 1], [1, 1]]
    np.testing.assert_allclose(counts.group_accuracy(), [1 / 3, 1])


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (([], [], []), "one tile or more; got none"),
        (([1, 2], [1], [0, 0]), "predicted needs one value for each of 2 rows"),
        (([1, 2], [1, 2], [0]), "groups needs one value"),
        (([1, 2], [1, 2], [0, None]), "groups needs a value in each row"),
    ],
)
def test_refuses(given, match) -> None:
    with pytest.raises(ValueError, match=match):
        group_counts(*given)
