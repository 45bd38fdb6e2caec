from itertools import product

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from anlage.probes.uncertainty.critical_difference import (
    critical_difference,
    rank_models,
    runs_not_apart,
    signed_rank_p_value,
)

# Demsar 2006, table 6: AUC of four variants of C4.5 on 14 data sets. In the last row but one, two
# are printed as 0.975 and ranked 2 and 3: rounded there, so apart here.
VARIANTS = ("C4.5", "C4.5+m", "C4.5+cf", "C4.5+m+cf")
AUC = [
    *([0.763, 0.768, 0.771, 0.798], [0.599, 0.591, 0.590, 0.569], [0.954, 0.971, 0.968, 0.967]),
    *([0.628, 0.661, 0.654, 0.657], [0.882, 0.888, 0.886, 0.898], [0.936, 0.931, 0.916, 0.931]),
    *([0.661, 0.668, 0.609, 0.685], [0.583, 0.583, 0.563, 0.625], [0.775, 0.838, 0.866, 0.875]),
    *([1.000, 1.000, 1.000, 1.000], [0.940, 0.962, 0.965, 0.962], [0.619, 0.666, 0.614, 0.669]),
    *([0.972, 0.981, 0.9751, 0.975], [0.957, 0.978, 0.946, 0.970]),
]


def test_published_example() -> None:
    """Demsar 2006, section 3.2.2: ranks 3.143, 2.000, 2.893, 1.964; critical difference 1.25."""
    ranking = rank_models(AUC, VARIANTS)
    assert ranking.model_K == ("C4.5+m+cf", "C4.5+m", "C4.5+cf", "C4.5")
    assert ranking.average_rank_K == pytest.approx([1.964, 2.0, 2.893, 3.143], abs=1e-3)
    assert ranking.critical_difference == pytest.approx(1.25, abs=0.01)
    ties = 78 / (14 * (4**3 - 4))  # one of four and three of two; not corrected for there
    assert ranking.friedman_p == pytest.approx(stats.chi2.sf(9.28 / (1 - ties), 3), rel=0.01)
    assert ranking.iman_davenport_p < 0.05  # F = 3.69, critical value 2.85
    assert ranking.n_tasks == 14
    assert ranking.nemenyi_groups == (ranking.model_K,)  # as there: not powerful enough at 5 %
    at_10 = rank_models(AUC, VARIANTS, level=0.1)
    assert at_10.critical_difference == pytest.approx(1.12, abs=0.01)
    assert all("C4.5" not in g or ranking.model_K[0] not in g for g in at_10.nemenyi_groups)


@pytest.mark.parametrize(
    ("n_models", "at_5", "at_10"),
    [
        (2, 1.960, 1.645),
        (3, 2.343, 2.052),
        (4, 2.569, 2.291),
        (7, 2.949, 2.693),
        (10, 3.164, 2.920),
    ],
)
def test_quantiles_are_those_of_demsars_table_5(n_models, at_5, at_10) -> None:
    unit = np.sqrt(n_models * (n_models + 1) / 6)
    assert critical_difference(n_models, 1) / unit == pytest.approx(at_5, abs=1.1e-3)
    assert critical_difference(n_models, 1, level=0.1) / unit == pytest.approx(at_10, abs=1.1e-3)


def test_pairs_are_wilcoxon_tests_with_holm(generator) -> None:
    score = generator.normal([0, 0.3, 1.5], size=(20, 3))
    ranking = rank_models(score, "abc")
    order = ["abc".index(name) for name in ranking.model_K]
    pairs = [(0, 1), (0, 2), (1, 2)]
    raw = [stats.wilcoxon(score[:, order[i]], score[:, order[j]]).pvalue for i, j in pairs]
    adjusted = multipletests(raw, method="holm")[1]
    assert [ranking.wilcoxon_KK[pair] for pair in pairs] == pytest.approx(adjusted)
    np.testing.assert_array_equal(ranking.wilcoxon_KK, ranking.wilcoxon_KK.T)
    assert ranking.wilcoxon_groups == (("c",), ranking.model_K[1:])
    expected = stats.friedmanchisquare(*score.T).pvalue
    assert ranking.friedman_p == pytest.approx(expected)


@pytest.mark.parametrize("n", [1, 5, 12, 30])
def test_signed_rank_test_is_the_exact_one_of_scipy(generator, n) -> None:
    difference = generator.normal(0.3, 1, n)
    expected = stats.wilcoxon(difference, method="exact").pvalue
    assert signed_rank_p_value(difference) == pytest.approx(expected)


def test_signed_rank_test_with_ties_and_zeros_is_all_ways_to_give_signs() -> None:
    difference = np.array([0.0, 1, 1, -1, 2, 2, 3, -3, 4, 0, 5])
    ranks = stats.rankdata(np.abs(difference))
    signs = np.array(list(product([0, 1], repeat=len(ranks))))[:, difference != 0]
    sums = signs @ ranks[difference != 0]
    observed = ranks[difference > 0].sum()
    expected = 2 * min((sums <= observed).mean(), (sums >= observed).mean())
    assert signed_rank_p_value(difference) == pytest.approx(expected)
    assert signed_rank_p_value(np.zeros(4)) == 1


def test_errors_are_ranked_the_other_way() -> None:
    up = rank_models(AUC, VARIANTS)
    down = rank_models(-np.array(AUC), VARIANTS, is_better_larger=False)
    assert up.model_K == down.model_K
    np.testing.assert_array_equal(up.average_rank_K, down.average_rank_K)


def test_equal_models_are_one_group_and_a_clear_order_is_told() -> None:
    equal = rank_models(np.ones((6, 3)), "abc")
    assert (equal.friedman_p, equal.wilcoxon_groups) == (1, (("a", "b", "c"),))
    clear = rank_models(np.arange(3) + np.linspace(0, 0.5, 12)[:, None], "abc")
    assert clear.iman_davenport_p == pytest.approx(6.0**-11)  # 12 tasks of one order of 3
    few = rank_models([[1, 2, 3], [4, 5, 6]], "abc")
    assert few.iman_davenport_p == pytest.approx(1 / 6)  # two tasks agree by chance that often
    tied = rank_models([[1, 2, 2], [4, 5, 5]], "abc")
    assert tied.iman_davenport_p == pytest.approx(1 / 3)
    assert clear.wilcoxon_groups == (("c",), ("b",), ("a",))


def apart(n, *pairs):
    table = np.zeros((n, n), dtype=bool)
    for i, j in pairs:
        table[i, j] = table[j, i] = True
    return table


@pytest.mark.parametrize(
    ("pairs", "groups"),
    [
        ((), ("abcd",)),
        ([(0, 3)], ("abc", "bcd")),
        ([(0, 1), (0, 2), (0, 3)], ("a", "bcd")),
        ([(1, 2)], ("ab", "cd")),  # a and d are not apart, but b and c between them are
        ([(0, 2), (0, 3), (1, 3)], ("ab", "bc", "cd")),
        ([(0, 1), (1, 2), (2, 3)], ("a", "b", "c", "d")),
    ],
)
def test_runs_are_maximal_and_hold_no_pair_that_is_apart(pairs, groups) -> None:
    assert runs_not_apart("abcd", apart(4, *pairs)) == tuple(tuple(group) for group in groups)


@pytest.mark.parametrize(
    ("score", "names", "message"),
    [
        (np.ones((5, 2)), "ab", "three models or more; got shape (5, 2)"),
        (np.ones((1, 3)), "abc", "two tasks or more"),
        (np.ones((5, 3)), "ab", "one name for each of 3 models"),
        (np.ones((5, 3)), "aab", "no two alike"),
        ([[1, 2, 3], [1, np.nan, 3]], "abc", "got nan for 'b' on task 1"),
    ],
)
def test_refuses(score, names, message) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        rank_models(score, names)
    assert message in str(error.value)
