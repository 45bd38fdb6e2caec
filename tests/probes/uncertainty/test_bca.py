import numpy as np
import pytest
from scipy import stats

from anlage.probes.uncertainty.bca import BootstrapDistribution
from reference.slow_bootstrap import widened_tails


def distribution(value_R, estimate, leave_out_G, stratum_G=None):
    stratum_G = np.zeros(len(leave_out_G), dtype=np.int64) if stratum_G is None else stratum_G
    return BootstrapDistribution(
        value_R=value_R, estimate=estimate, leave_out_G=leave_out_G, stratum_G=stratum_G
    )


@pytest.mark.parametrize("is_rounded", [False, True])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_ends_are_those_of_scipy(generator, confidence, is_rounded) -> None:
    """On the same resamples of a skewed sample; rounded, many resamples tie with the estimate."""
    x = generator.exponential(size=25)
    x = np.round(x) if is_rounded else x
    found = stats.bootstrap(
        (x,), np.mean, method="BCa", confidence_level=confidence, n_resamples=2000, rng=1
    )
    leave_out = (x.sum() - x) / 24
    ours = distribution(found.bootstrap_distribution, x.mean(), leave_out)
    expected = (found.confidence_interval.low, found.confidence_interval.high)
    assert ours.bca_ends(confidence) == pytest.approx(expected, rel=1e-9)
    plain = ours.percentile_ends(confidence)
    assert plain[1] <= expected[1]  # the mean of an exponential: to the right


def test_of_a_symmetric_distribution_is_the_percentile_interval() -> None:
    value = np.linspace(-1, 1, 2001)
    ours = distribution(value, 0.0, np.array([-1.0, 0, 1]))
    assert ours.bca_ends(0.95) == pytest.approx(ours.percentile_ends(0.95), abs=1e-9)


@pytest.mark.parametrize(
    ("value", "estimate"), [(np.ones(9), 1.0), (np.arange(9.0), 9.0), (np.arange(9.0), -1.0)]
)
def test_has_no_value_where_the_bias_is_infinite(value, estimate) -> None:
    assert distribution(value, estimate, np.arange(4.0)).bca_ends(0.95) is None


def test_acceleration_is_zero_where_no_group_moves_it_and_leaves_out_the_undefined() -> None:
    assert distribution(np.arange(9.0), 4.0, np.ones(5)).acceleration() == 0
    leave_out = np.array([1.0, 2, 4, np.nan])
    moved = leave_out[:3].mean() - leave_out[:3]
    expected = (moved**3).sum() / (6 * (moved**2).sum() ** 1.5)
    assert distribution(np.arange(9.0), 4.0, leave_out).acceleration() == pytest.approx(expected)


def test_acceleration_is_within_strata() -> None:
    """Strata of unlike means, each symmetric: nothing is skewed."""
    leave_out = np.array([1.0, 2, 3, 101, 102, 103, 7])
    stratum = np.array([0, 0, 0, 1, 1, 1, 2])
    assert distribution(np.arange(9.0), 4.0, leave_out, stratum).acceleration() == pytest.approx(0)
    assert distribution(np.arange(9.0), 4.0, leave_out).acceleration() != 0


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("is_bca", [False, True])
def test_resamples_of_exactly_0_speak_for_0(sign, is_bca) -> None:
    """40 of 1,000 are 0 and none is beyond: the 95 % interval ends at 0, so p is above 0.05."""
    value = sign * np.r_[np.zeros(40), np.linspace(0.1, 0.9, 960)]
    ours = distribution(value, float(np.median(value)), np.linspace(-1, 1, 2001))
    ends = ours.bca_ends(0.95) if is_bca else ours.percentile_ends(0.95)
    assert 0 in ends
    assert ours.p_value(is_bca=is_bca) == pytest.approx(0.08, abs=5e-4)  # 2001 groups: normal


def test_confidence_is_widened_as_a_t_interval_is() -> None:
    ours = distribution(np.arange(9.0), 4.0, np.arange(20.0))
    assert ours.widened(0.95) == pytest.approx(1 - 2 * widened_tails(20)[0])
    assert ours.widened(0.95) == pytest.approx(0.968, abs=5e-4)
    constant = distribution(np.arange(9.0), 4.0, np.full(20, np.nan))
    assert constant.widened(0.95) == pytest.approx(ours.widened(0.95))


def test_degrees_of_freedom_in_strata_are_welchs(generator) -> None:
    """Of the difference of two means, whose jackknife moves each group by its share."""
    x, y = generator.normal(0, 3, 4), generator.normal(0, 1, 30)
    moved = np.r_[(x.mean() - x) / (len(x) - 1), (y - y.mean()) / (len(y) - 1)]
    ours = distribution(np.arange(9.0), 4.0, moved, np.repeat([0, 1], [4, 30]))
    freedom = stats.ttest_ind(x, y, equal_var=False).df
    assert ours.widened(0.95) == pytest.approx(1 - 2 * stats.norm.sf(stats.t.isf(0.025, freedom)))


def test_p_value_is_that_of_a_widened_interval() -> None:
    """200 of 10,000 lie below 0, which is the end of a plain 96 % interval."""
    value = np.r_[np.full(200, -1.0), np.linspace(0.1, 0.9, 9800)]
    ours = distribution(value, float(np.median(value)), np.zeros(20))
    p_value = ours.p_value(is_bca=False)
    assert p_value > 0.04
    assert ours.widened(1 - p_value) == pytest.approx(0.96)


def test_two_groups_have_ends_however_wide(generator) -> None:
    ours = distribution(generator.normal(size=200), 0.1, np.array([0.0, 0.4]))
    confidence = ours.widened(0.95)
    assert 0.999 < confidence < 1
    assert np.isfinite(ours.bca_ends(confidence)).all()
    skewed = distribution(generator.normal(size=200), 0.1, np.array([0.0, 0.1, 0.9]))
    assert np.isfinite(skewed.bca_ends(skewed.widened(0.9999999))).all()
