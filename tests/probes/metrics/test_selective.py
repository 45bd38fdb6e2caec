import numpy as np
import pytest

from anlage.probes.metrics.selective import (
    ACCURACY_AT_80,
    AURC,
    EXCESS_AURC,
    accuracy_at_coverage,
    risk_coverage,
)
from reference.gathered_rows import on_gathered_rows, resample_weights

N_GROUPS = 10


@pytest.fixture
def predictions(generator):
    confidence = generator.random(200)
    truth = generator.integers(0, 3, 200)
    guess = np.where(generator.random(200) < confidence, truth, (truth + 1) % 3)
    return truth, guess, confidence, generator.integers(0, N_GROUPS, 200)


def slow_aurc(truth, guess, confidence):
    """For each row, the risk of all rows at least as sure."""
    wrong = truth != guess
    return np.mean([wrong[confidence >= level].mean() for level in confidence])


def slow_excess(truth, guess, confidence):
    wrong = np.sort(truth != guess)  # all right ones first
    return (
        slow_aurc(truth, guess, confidence) - (wrong.cumsum() / np.arange(1, len(wrong) + 1)).mean()
    )


def slow_accuracy(truth, guess, confidence):
    right = truth == guess
    levels = np.sort(confidence)[::-1]
    level = next(level for level in levels if (confidence >= level).mean() >= 0.8 - 1e-12)
    return right[confidence >= level].mean()


METRICS = [(AURC, slow_aurc), (EXCESS_AURC, slow_excess), (ACCURACY_AT_80, slow_accuracy)]


@pytest.mark.parametrize(("metric", "slow"), METRICS, ids=lambda value: getattr(value, "name", ""))
@pytest.mark.parametrize("decimals", [12, 1])
def test_is_the_slow_reading(metric, slow, decimals, predictions, generator) -> None:
    truth, guess, confidence, group = predictions
    columns = (truth, guess, confidence.round(decimals))
    assert metric(*columns) == pytest.approx(slow(*columns), abs=1e-12)
    weight_RG = resample_weights(generator, N_GROUPS, 15)
    got = metric.over_groups(columns, group, N_GROUPS)(weight_RG)
    np.testing.assert_allclose(got, on_gathered_rows(slow, columns, group, weight_RG), atol=1e-12)
    assert np.isnan(metric.over_groups(columns, group, N_GROUPS)(np.zeros((1, N_GROUPS)))).all()


def test_hand_example() -> None:
    """Risks 0, 0, 1/3, 1/4: their mean; the best order has 0, 0, 0, 1/4."""
    columns = ([1, 1, 1, 1], [1, 1, 0, 1], [0.9, 0.8, 0.7, 0.6])
    assert AURC(*columns) == pytest.approx((1 / 3 + 1 / 4) / 4)
    assert EXCESS_AURC(*columns) == pytest.approx(1 / 12)
    assert accuracy_at_coverage(0.5)(*columns) == 1
    assert accuracy_at_coverage(0.51)(*columns) == pytest.approx(2 / 3)
    assert accuracy_at_coverage(1)(*columns) == 0.75


def test_equal_confidences_are_accepted_together() -> None:
    columns = ([1, 1, 1, 1], [1, 0, 0, 1], [0.5] * 4)
    assert AURC(*columns) == 0.5
    assert ACCURACY_AT_80(*columns) == 0.5
    assert risk_coverage(*columns).coverage_K.tolist() == [1]


def test_excess_goes_to_the_papers_limit(generator) -> None:
    """Of the best order nothing is left; AURC is r + (1 - r) ln(1 - r) for many rows."""
    wrong = np.arange(100_000) >= 80_000
    columns = (np.zeros(100_000), wrong.astype(int), -np.arange(100_000))
    assert EXCESS_AURC(*columns) == pytest.approx(0, abs=1e-12)
    assert AURC(*columns) == pytest.approx(0.2 + 0.8 * np.log(0.8), abs=1e-5)


def test_curve_falls_to_the_error_of_all_rows(predictions) -> None:
    truth, guess, confidence, _ = predictions
    curve = risk_coverage(truth, guess, confidence.round(2))
    assert (np.diff(curve.confidence_K) < 0).all()
    assert (np.diff(curve.coverage_K) > 0).all()
    assert curve.coverage_K[-1] == 1
    assert curve.risk_K[-1] == pytest.approx((truth != guess).mean())
    step = np.diff(curve.coverage_K, prepend=0)
    assert (step * curve.risk_K).sum() == pytest.approx(AURC(truth, guess, confidence.round(2)))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: AURC([0, 1], [0, 1], [0.5, np.inf]), "confidence needs finite numbers"),
        (lambda: AURC([0, 1], [0, 1], [0.5, np.nan]), "needs a value in each row"),
        (lambda: AURC([0, 1], [0, 1], [0.5]), "each of 2 rows"),
        (lambda: AURC([0, 1], ["0", "1"], [0.5, 1]), "labels of one kind"),
        (lambda: risk_coverage([0], [0], ["sure"]), "confidence needs finite numbers"),
        (lambda: accuracy_at_coverage(0), "above 0 and at most 1; got 0"),
    ],
)
def test_refuses(call, match) -> None:
    with pytest.raises(ValueError, match=match):
        call()
