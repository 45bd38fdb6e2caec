import numpy as np
import pytest
import torch

from anlage.probes.metrics.classification import ACCURACY, BALANCED_ACCURACY
from anlage.probes.metrics.metric import metric_of_rows
from anlage.probes.metrics.ranking import AUROC


def median_error(truth, predicted):
    if not len(truth):
        msg = "no rows"
        raise ValueError(msg)
    return np.median(np.abs(truth - predicted))


METRIC = metric_of_rows(
    median_error, name="median_error", columns=("truth", "predicted"), is_better_larger=False
)
COLUMNS = (np.array([1.0, 2, 3, 4, 5]), np.array([1.0, 1, 1, 1, 1]))
GROUP = np.array([0, 2, 0, 1, 1])


def test_any_function_is_a_metric() -> None:
    assert METRIC(*COLUMNS) == 2
    weight_RG = np.array([[1.0, 1, 1], [2, 0, 1], [0, 3, 0], [0, 0, 0]])
    got = METRIC.over_groups(COLUMNS, GROUP, 3)(weight_RG)
    np.testing.assert_array_equal(got, [2, 1, 3.5, np.nan])


def test_what_it_refuses_on_all_rows_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="no rows"):
        METRIC.over_groups((COLUMNS[0][:0], COLUMNS[1][:0]), GROUP[:0], 3)


def test_half_a_row_cannot_be_repeated() -> None:
    statistic = METRIC.over_groups(COLUMNS, GROUP, 3)
    with pytest.raises(ValueError, match="median_error: needs whole weights"):
        statistic(np.array([[0.5, 1, 1]]))


def test_agrees_with_the_counted_form() -> None:
    counted = BALANCED_ACCURACY.over_groups
    slow = metric_of_rows(BALANCED_ACCURACY, name="slow", columns=("truth", "predicted"))
    generator = np.random.default_rng(0)
    columns = (generator.integers(0, 3, 60), generator.integers(0, 3, 60))
    group, weight_RG = generator.integers(0, 5, 60), generator.integers(0, 4, (9, 5)).astype(float)
    got = slow.over_groups(columns, group, 5)(weight_RG)
    np.testing.assert_allclose(got, counted(columns, group, 5)(weight_RG), atol=1e-12)


@pytest.mark.gpu
def test_columns_may_lie_on_a_gpu() -> None:
    columns = torch.tensor([[0, 1, 1, 0, 2], [0, 1, 0, 0, 1]])
    assert BALANCED_ACCURACY(*columns.cuda()) == BALANCED_ACCURACY(*columns)


def test_a_gap_in_a_list_is_no_class_and_half_precision_is_read() -> None:
    with pytest.raises(ValueError, match="needs a value in each row; got none in 1 rows"):
        ACCURACY(["a", float("nan"), "b"], ["a", "nan", "b"])
    assert AUROC([0, 1], torch.tensor([0.1, 0.9], dtype=torch.bfloat16)) == 1
