import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as of_statsmodels

from anlage.probes.uncertainty.mcnemar import mcnemar


def rows(both, only_a, only_b, neither):
    """Truth 1 and both models' labels, with so many rows of each kind."""
    a = np.repeat([1, 1, 0, 0], [both, only_a, only_b, neither])
    b = np.repeat([1, 0, 1, 0], [both, only_a, only_b, neither])
    return np.ones(len(a), dtype=int), a, b


@pytest.mark.parametrize("table", [(59, 6, 16, 80), (10, 0, 7, 3), (10, 5, 5, 3), (5, 1, 0, 2)])
def test_exact_p_is_that_of_statsmodels(table) -> None:
    test = mcnemar(*rows(*table))
    expected = of_statsmodels(np.reshape(table, (2, 2)), exact=True).pvalue
    assert test.p_exact == pytest.approx(min(1.0, expected))
    assert (test.n_only_a, test.n_only_b, test.n_rows) == (table[1], table[2], sum(table))


def test_published_example() -> None:
    """Fagerland 2013, table 1 (airway hyper-responsiveness): 1 and 7 discordant pairs of 21."""
    test = mcnemar(*rows(1, 1, 7, 12))
    assert test.p_exact == pytest.approx(0.070, abs=5e-4)
    assert test.p_mid == pytest.approx(0.039, abs=5e-4)


@pytest.mark.parametrize(("only_a", "only_b"), [(3, 9), (4, 4), (0, 5)])
def test_mid_p_counts_half_of_what_was_observed(only_a, only_b) -> None:
    n = only_a + only_b
    odds = stats.binom.pmf(np.arange(n + 1), n, 0.5)
    observed = odds[only_a]
    expected = odds[odds < observed * (1 - 1e-9)].sum()
    expected += odds[np.isclose(odds, observed)].sum() / 2
    assert mcnemar(*rows(5, only_a, only_b, 5)).p_mid == pytest.approx(expected)


def test_models_right_on_the_same_rows_do_not_differ() -> None:
    test = mcnemar(*rows(5, 0, 0, 5))
    assert (test.p_exact, test.p_mid) == (1, 1)


def test_level_of_the_mid_p() -> None:
    generator = np.random.default_rng(2)
    n_said = 0
    for _ in range(2000):
        a, b = (generator.random((2, 40)) < 0.7).astype(int)
        n_said += mcnemar(np.ones(40, dtype=int), a, b).p_mid <= 0.05
    assert 0.03 < n_said / 2000 < 0.06


def test_refuses_several_rows_of_a_patient() -> None:
    with pytest.raises(ValueError, match="got 2 rows of 'p'. Use paired_permutation"):
        mcnemar([0, 1, 1], [0, 1, 1], [0, 0, 1], ["p", "q", "p"])
    with pytest.raises(ValueError, match="truth and a and b need labels of one kind"):
        mcnemar([0, 1], ["0", "1"], [0, 1])
    with pytest.raises(ValueError, match="predicted b needs one value for each of 2 rows"):
        mcnemar([0, 1], [0, 1], [0])
