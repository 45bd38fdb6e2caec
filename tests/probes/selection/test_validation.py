import numpy as np
import pytest
import torch

from anlage.probes.selection.validation import (
    probability_table,
    score_table,
    validation_side,
)
from anlage.probes.splits.split import Split

GROUP = np.array(["a", "a", "b", "c", "c", "d"])


def split_of(train=(0, 1), validation=(2, 3, 4), test=(5,)):
    rows = [np.array(side, dtype=np.int64) for side in (train, test, validation)]
    return Split(name="s", train=rows[0], test=rows[1], validation=rows[2])


def side():
    return validation_side("who", split_of(), GROUP)


def test_takes_the_validation_rows_of_arrays_and_tensors() -> None:
    assert side().take("who", "x", np.arange(6) * 10).tolist() == [20, 30, 40]
    assert side().take("who", "x", torch.arange(6.0)[:, None]).tolist() == [[2], [3], [4]]
    assert side().chosen_on.n_groups == 2
    assert side().chosen_on.groups == {"b", "c"}


def test_bfloat16_is_read_as_float64() -> None:
    halves = torch.tensor([[0.5, 0.5]], dtype=torch.bfloat16, requires_grad=True)
    table = probability_table("who", "x", halves, n_classes=2)
    assert (table.dtype, table.tolist()) == (np.float64, [[0.5, 0.5]])


@pytest.mark.gpu
def test_takes_rows_of_tensors_on_a_gpu() -> None:
    assert side().take("who", "x", torch.arange(6.0, device="cuda")).tolist() == [2, 3, 4]


def test_weights_of_rows_and_of_groups() -> None:
    assert side().weights(group_counts_once=False).tolist() == [1 / 3] * 3
    assert side().weights(group_counts_once=True).tolist() == [0.5, 0.25, 0.25]


def test_labels_of_other_sides_are_not_read() -> None:
    truth = np.array([None, "unknown", "y", "x", "x", None], dtype=object)
    assert side().codes("who", truth, ["x", "y"]).tolist() == [1, 0, 0]


def test_refuses_groups_it_was_chosen_on_whatever_their_type() -> None:
    chosen_on = validation_side("who", split_of(), [0, 0, 1, 2, 2, 3]).chosen_on
    chosen_on.refuse_groups("who", [3, 4], n_rows=2)
    chosen_on.refuse_groups("who", None, n_rows=2)
    for group in ([2, 3], ["2", "3"], torch.tensor([2, 3]), [2.0, 3.0], ["2 ", "3"]):
        with pytest.raises(ValueError, match="got 1 of them, such as 2"):
            chosen_on.refuse_groups("who", group, n_rows=2)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: validation_side("who", split_of(validation=()), GROUP), "by inner_split"),
        (lambda: validation_side("who", split_of((0,), (1, 2)), GROUP), "two, such as a"),
        (lambda: validation_side("who", split_of(), GROUP[:4]), "got 4 groups and row 5"),
        (lambda: side().take("who", "x", np.arange(3)), "x needs all 6 rows"),
        (lambda: side().codes("who", list("xxyyyy"), ["x", "y"]), "two classes or more"),
        (lambda: side().codes("who", list("xxyxzy"), ["x", "y"]), "got \\['z'\\] in 1 rows"),
        (lambda: score_table("who", "x", [1.0, 2.0], n_classes=2), "got shape \\(2,\\)"),
        (lambda: score_table("who", "x", [[1.0, np.nan]], n_classes=2), "NaN .* row 0"),
        (lambda: score_table("who", "x", np.ones((0, 2)), n_classes=2), "got shape \\(0, 2\\)"),
        (lambda: probability_table("who", "x", [[0.5, 0.6]], n_classes=2), "\\[0.5, 0.6\\]"),
        (lambda: probability_table("who", "x", [[-0.5, 1.5]], n_classes=2), "softmax"),
    ],
)
def test_refuses(call, match) -> None:
    with pytest.raises(ValueError, match=match):
        call()
