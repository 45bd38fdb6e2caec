from itertools import product

import numpy as np
import pytest
from scipy import stats

from anlage.probes.metrics.classification import ACCURACY, BALANCED_ACCURACY
from anlage.probes.metrics.metric import metric_of_rows
from anlage.probes.metrics.ranking import AUROC
from anlage.probes.metrics.selective import AURC
from anlage.probes.uncertainty import permutation
from anlage.probes.uncertainty.permutation import paired_permutation
from reference.slow_delong import kernel


def brier_score(truth, score):
    return float(((truth - score) ** 2).mean())


def auroc(truth, score):
    return float(kernel(score[truth == 1], score[truth == 0]).mean())


BRIER = metric_of_rows(
    brier_score, name="brier", columns=("truth", "score"), is_better_larger=False
)


@pytest.fixture
def labels(generator):
    """7 patients of 1 to 5 rows, two models."""
    group = np.repeat(np.arange(7), generator.integers(1, 6, 7))
    truth = group % 3
    a, b = (
        np.where(generator.random(len(group)) < chance, truth, (truth + 1) % 3)
        for chance in (0.9, 0.5)
    )
    return truth, a, b, group


def all_swappings(score, truth, a, b, group):
    """Differences under every way to swap whole patients, by the obvious loop."""
    names = np.unique(group)
    values = []
    for swaps in product([False, True], repeat=len(names)):
        swapped = np.isin(group, names[list(swaps)])
        x, y = np.where(swapped, b, a), np.where(swapped, a, b)
        values.append(score(truth, x) - score(truth, y))
    return np.array(values)


@pytest.mark.parametrize("metric", [ACCURACY, BALANCED_ACCURACY])
def test_few_patients_are_swapped_in_every_way(labels, metric) -> None:
    truth, a, b, group = labels
    test = paired_permutation(metric, (truth, a), (truth, b), group)
    values = all_swappings(metric, *labels)
    assert test.difference == pytest.approx(values[0])
    assert test.p_value == (np.abs(values) >= abs(values[0]) - 1e-9).mean()
    assert (test.is_exact, test.n_permutations, test.used_ranks) == (True, 127, False)


def test_mean_over_patients_of_equal_size_is_the_sign_flip_of_scipy(generator) -> None:
    value_a, value_b = generator.normal(size=(2, 10))
    mean = metric_of_rows(lambda _, x: float(x.mean()), name="mean", columns=("truth", "x"))
    test = paired_permutation(
        mean, (np.zeros(10), value_a), (np.zeros(10), value_b), np.arange(10), rank_scores=False
    )
    expected = stats.permutation_test(
        (value_a - value_b,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert test.p_value == pytest.approx(expected.pvalue)


def test_many_patients_are_drawn_and_close_to_all(labels, monkeypatch) -> None:
    truth, a, b, group = labels
    exact = paired_permutation(ACCURACY, (truth, a), (truth, b), group).p_value
    test = paired_permutation(ACCURACY, (truth, a), (truth, b), group, n_permutations=100)
    assert not test.is_exact
    assert test.p_value == pytest.approx(exact, abs=0.12)
    monkeypatch.setattr(permutation, "BLOCK_WEIGHTS", 7 * 7)
    again = paired_permutation(ACCURACY, (truth, a), (truth, b), group, n_permutations=100)
    assert again == test


def test_least_p_value_counts_the_one_observed() -> None:
    truth, group = np.arange(40) % 2, np.arange(40)
    test = paired_permutation(
        ACCURACY, (truth, truth), (truth, 1 - truth), group, n_permutations=999
    )
    assert test.p_value == 1 / 1000


def test_order_of_the_models_flips_the_sign_only_and_equal_models_are_equal(labels) -> None:
    truth, a, b, group = labels
    there = paired_permutation(ACCURACY, (truth, a), (truth, b), group)
    back = paired_permutation(ACCURACY, (truth, b), (truth, a), group)
    assert (there.difference, there.p_value) == (-back.difference, back.p_value)
    assert paired_permutation(ACCURACY, (truth, a), (truth, a), group).p_value == 1


@pytest.fixture
def scores(generator):
    truth = np.arange(8) % 2
    a, b = truth + generator.normal(size=(2, 8))
    return truth, a, b, np.arange(8)


def test_scores_are_ranked_within_each_model_for_metrics_of_order(scores) -> None:
    truth, a, b, group = scores
    test = paired_permutation(AUROC, (truth, a), (truth, b), group)
    ranks = [stats.rankdata(x) for x in (a, b)]
    values = all_swappings(auroc, truth, *ranks, group)
    assert test.p_value == pytest.approx((np.abs(values) >= abs(values[0]) - 1e-9).mean())
    assert test.used_ranks
    other_scale = paired_permutation(AUROC, (truth, a), (truth, np.exp(9 * b) - 5), group)
    assert other_scale == test


def test_whole_numbers_as_scores_are_ranked_too_whichever_model_comes_first(scores) -> None:
    """A grade beside a risk: whole numbers on one scale, fractions on another."""
    truth, a, b, group = scores
    grade, risk = np.round(2 * a).astype(int), 100 * b
    there = paired_permutation(AUROC, (truth, grade), (truth, risk), group)
    back = paired_permutation(AUROC, (truth, risk), (truth, grade), group)
    assert there == paired_permutation(AUROC, (truth, grade / 7), (truth, risk), group)
    assert (there.used_ranks, back.used_ranks) == (True, True)
    assert there.p_value == back.p_value


def test_only_the_columns_whose_order_counts_are_ranked(generator) -> None:
    truth, group = np.arange(8) % 2, np.arange(8)
    a, b = generator.integers(0, 2, (2, 8))
    sure_a, sure_b = generator.random((2, 8))
    test = paired_permutation(AURC, (truth, a, sure_a), (truth, b, 50 * sure_b), group)
    assert test.used_ranks
    assert test == paired_permutation(AURC, (truth, a, 3 * sure_a), (truth, b, sure_b), group)


def test_probabilities_stay_what_they_are_for_metrics_of_their_size(scores) -> None:
    truth, a, b, group = scores
    p, q = (1 / (1 + np.exp(-x)) for x in (a, b))
    test = paired_permutation(BRIER, (truth, p), (truth, q), group)
    values = all_swappings(brier_score, truth, p, q, group)
    assert test.p_value == pytest.approx((np.abs(values) >= abs(values[0]) - 1e-9).mean())
    assert not test.used_ranks
    forced = paired_permutation(BRIER, (truth, p), (truth, q), group, rank_scores=True)
    assert forced.used_ranks


def test_without_ranks_the_wider_scale_wins_all_pairs(scores) -> None:
    """Why ranks: raw scores of two scales are not exchangeable, and the p-value is another."""
    truth, a, b, group = scores
    raw, ranked = (
        paired_permutation(AUROC, (truth, a), (truth, 100 * b), group, rank_scores=r).p_value
        for r in (False, True)
    )
    assert raw != ranked


def test_swappings_without_a_value_count_as_large(scores) -> None:
    truth, _, _, group = scores

    def fussy(_, x):
        return x.mean() if 3 < x.sum() < 5 else float("nan")

    metric = metric_of_rows(fussy, name="fussy", columns=("truth", "x"))
    a = np.where(np.arange(8) < 4, 1.0, 0.0)
    test = paired_permutation(metric, (truth, a), (truth, 1 - a), group, rank_scores=False)
    assert test.n_undefined > 0
    assert test.p_value == 1


def test_refuses(labels) -> None:
    truth, a, b, group = labels
    with pytest.raises(ValueError, match="needs one permutation or more; got 0"):
        paired_permutation(ACCURACY, (truth, a), (truth, b), group, n_permutations=0)
    with pytest.raises(ValueError, match="truth needs to be the same for both models"):
        paired_permutation(ACCURACY, (truth, a), (1 - truth, b), group)
    with pytest.raises(ValueError, match="two groups or more"):
        paired_permutation(ACCURACY, (truth, a), (truth, b), np.zeros(len(group)))
    nothing = metric_of_rows(lambda *_: float("nan"), name="nothing", columns=("truth", "x"))
    with pytest.raises(ValueError, match="nothing"):
        paired_permutation(nothing, (truth, a), (truth, b), group)
