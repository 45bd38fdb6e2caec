import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.metrics import roc_auc_score

from anlage.probes.uncertainty.delong import auroc_covariance, delong_interval, delong_test
from reference.slow_delong import slow_covariance


@pytest.fixture
def golden():
    path = Path(__file__).parents[2] / "golden" / "delong.json"
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def clustered(generator):
    """40 patients of 1 to 5 rows, half of them with rows of both classes; scores with ties."""
    group = np.repeat(np.arange(40), generator.integers(1, 6, 40))
    truth = np.where(group % 2, generator.random(len(group)) < 0.5, group % 4 == 0).astype(int)
    effect = generator.normal(size=40)[group]
    a, b = (np.round(truth + effect + generator.normal(size=len(group)), 1) for _ in range(2))
    return truth, a, b, group


def test_gives_the_numbers_of_r(golden) -> None:
    truth, a, b = golden["truth"], golden["a"], golden["b"]
    found = auroc_covariance("test", truth, (a, b), None)
    assert found.auroc_S == pytest.approx([golden["auroc_a"], golden["auroc_b"]])
    expected = [[golden["variance_a"], golden["covariance"]]]
    expected += [[golden["covariance"], golden["variance_b"]]]
    np.testing.assert_allclose(found.covariance_SS, expected, rtol=1e-10)
    interval = delong_interval(truth, a)
    assert (interval.low, interval.high) == pytest.approx((golden["low_a"], golden["high_a"]))
    test = delong_test(truth, a, b)
    ours = (test.z, test.p_value, test.low, test.high)
    assert ours == pytest.approx([golden[name] for name in ("z", "p_value", "low", "high")])


def test_is_the_sum_over_all_pairs_of_rows(clustered) -> None:
    truth, a, b, group = clustered
    for groups in (group, np.arange(len(group))):
        found = auroc_covariance("test", truth, (a, b), groups)
        auroc, covariance = slow_covariance(truth, (a, b), groups)
        np.testing.assert_allclose(found.auroc_S, auroc, rtol=1e-12)
        np.testing.assert_allclose(found.covariance_SS, covariance, rtol=1e-10)
    assert found.auroc_S[0] == pytest.approx(roc_auc_score(truth, a))


def test_one_row_a_patient_is_delong(clustered) -> None:
    truth, a, b, group = clustered
    with_groups = delong_test(truth, a, b, np.arange(len(group)))
    assert with_groups == delong_test(truth, a, b)


def test_copies_of_a_patients_rows_teach_nothing(generator) -> None:
    """Ten equal rows of each patient: the clustered variance stays, the plain one shrinks."""
    truth = np.arange(50) % 2
    score = truth + generator.normal(size=50)
    once = delong_interval(truth, score, np.arange(50))
    rows = np.repeat(np.arange(50), 10)
    copied = delong_interval(truth[rows], score[rows], rows)
    assert copied.standard_error == pytest.approx(once.standard_error)
    assert copied.auroc == pytest.approx(once.auroc)
    assert delong_interval(truth[rows], score[rows]).standard_error < once.standard_error / 3


def test_logit_interval_stays_inside_and_is_the_delta_method(generator) -> None:
    truth = np.arange(30) % 2
    score = 3 * truth + generator.normal(size=30)
    found = delong_interval(truth, score)
    assert 0 < found.logit_low < found.auroc < found.logit_high < 1
    scale = found.standard_error / (found.auroc * (1 - found.auroc))
    expected = expit(logit(found.auroc) + 1.959963984540054 * scale)
    assert found.logit_high == pytest.approx(expected)


def test_no_change_of_scale_matters_and_the_same_order_is_no_difference(clustered) -> None:
    truth, a, b, group = clustered
    assert delong_test(truth, a, b, group) == delong_test(truth, np.exp(a), b**3, group)
    same = delong_test(truth, a, np.exp(a), group)
    assert (same.difference, same.z, same.p_value) == (0, 0, 1)


def test_perfect_separation_has_no_width() -> None:
    truth = [0, 0, 0, 1, 1, 1]
    perfect = delong_interval(truth, [1, 2, 3, 4, 5, 6])
    assert (perfect.auroc, perfect.low, perfect.logit_low, perfect.logit_high) == (1, 1, 1, 1)
    test = delong_test(truth, [1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1])
    assert test.difference == 1
    assert np.isnan([test.z, test.p_value]).all()  # six rows do not give a p-value of 0


@pytest.mark.parametrize(
    ("truth", "score", "group", "message"),
    [
        ([0, 1, 2, 1], [1, 2, 3, 4], None, "truth needs to be 0 or 1 in each row; got [0, 1, 2]"),
        (["a", "b"], [1, 2], None, "truth needs to be 0 or 1"),
        ([0, 1, 1, 1], [1, 2, 3, 4], None, "two with a negative; got 3 and 1"),
        ([0, 0, 1, 1], [1, 2, 3, 4], [0, 1, 2, 2], "two patients or more with a positive"),
        ([0, 0, 1, 1], [1, 2, 3], None, "scores needs one value for each of 4 rows"),
        ([0, 0, 1, 1], [1, 2, 3, np.nan], None, "scores needs a value in each row"),
        ([0, 0, 1, 1], [1, 2, 3, np.inf], None, "got an infinity"),
    ],
)
def test_refuses(truth, score, group, message) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        delong_interval(truth, score, group)
    assert message in str(error.value)
