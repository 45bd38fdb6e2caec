import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from anlage.probes.uncertainty.multiple_tests import holm


@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_is_that_of_statsmodels(generator, n) -> None:
    p_value = np.round(generator.random(n) ** 3, 2)  # with ties, zeros and, adjusted, ones
    np.testing.assert_allclose(holm(p_value), multipletests(p_value, method="holm")[1], rtol=1e-12)


def test_by_hand() -> None:
    """By hand: each times the number of tests left, never falling."""
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])


@pytest.mark.parametrize("bad", [[], [0.5, 1.1], [-0.1], [np.nan], [[0.1]]])
def test_refuses(bad) -> None:
    with pytest.raises(ValueError, match="holm: needs a non-empty list of p-values"):
        holm(bad)
