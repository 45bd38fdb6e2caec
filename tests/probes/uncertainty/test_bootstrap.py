import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score

from anlage.probes.uncertainty import bootstrap as intervals
from anlage.probes.uncertainty.bootstrap import cluster_bootstrap, resample_weights


@pytest.fixture
def scored(generator):
    """23 cases of 1 to 6 tiles, 3 classes, some cases of mixed class, predictions 60 % right."""
    group = np.repeat(np.arange(23), generator.integers(1, 7, 23))
    truth = np.where(generator.random(len(group)) < 0.8, group % 3, 2)
    wrong = generator.random(len(group)) > 0.6
    return truth, np.where(wrong, generator.integers(0, 3, len(group)), truth), group


def slow_bootstrap(truth, predicted, group, *, n_resamples, seed):
    """The obvious loop: draw cases, gather their tiles, score them with scikit-learn."""
    names = np.unique(group)
    drawn = np.random.default_rng(seed).integers(len(names), size=(n_resamples, len(names)))
    values = []
    for row in drawn:
        tiles = np.concatenate([np.flatnonzero(group == names[g]) for g in row])
        values.append(balanced_accuracy_score(truth[tiles], predicted[tiles]))
    return np.array(values)


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
@pytest.mark.filterwarnings("ignore:A single label was found")
@pytest.mark.parametrize("block", [2**22, 23 * 7])
def test_is_the_slow_loop_number_for_number(scored, monkeypatch, block) -> None:
    monkeypatch.setattr(intervals, "BLOCK_WEIGHTS", block)
    values = slow_bootstrap(*scored, n_resamples=200, seed=5)
    fast = cluster_bootstrap(*scored, n_resamples=200, seed=5)
    assert (fast.low, fast.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))
    assert fast.estimate == pytest.approx(balanced_accuracy_score(*scored[:2]))
    assert (fast.n_groups, fast.n_resamples, fast.is_unreliable) == (23, 200, False)


def test_t_interval_of_equal_groups_is_the_textbook_one(generator) -> None:
    group = np.repeat(np.arange(12), 5)
    correct = generator.random(60) < 0.5
    interval = cluster_bootstrap(np.ones(60), correct.astype(float), group, metric="accuracy")
    means = correct.reshape(12, 5).mean(1)
    low, high = stats.t.interval(0.95, 11, loc=means.mean(), scale=stats.sem(means))
    assert (interval.t_low, interval.t_high) == pytest.approx((low, high))
    assert interval.is_unreliable


def test_bootstrap_of_two_groups_is_a_known_distribution() -> None:
    """One case all right, one all wrong: a resample scores 0, 1/2, 1 with odds 1, 2, 1."""
    interval = cluster_bootstrap([1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1], metric="accuracy")
    assert (interval.estimate, interval.low, interval.high) == (0.5, 0.0, 1.0)
    weight = np.concatenate(list(resample_weights(2, n_resamples=4000, seed=0)))
    share = np.bincount(weight[:, 0].astype(int)) / 4000
    np.testing.assert_allclose(share, [0.25, 0.5, 0.25], atol=0.03)


def test_resamples_draw_as_many_groups_as_there_are_and_follow_the_seed() -> None:
    first, again, other = (
        np.concatenate(list(resample_weights(9, n_resamples=50, seed=seed))) for seed in (1, 1, 2)
    )
    assert (first.sum(1) == 9).all()
    assert (first == again).all()
    assert (first != other).any()


def test_a_class_that_vanishes_is_counted_and_left_out_of_the_mean() -> None:
    """Class b lives in one of three cases: 8 of 27 resamples do not draw it."""
    truth, predicted, group = ["a", "a", "b"], ["a", "x", "x"], [0, 1, 2]
    interval = cluster_bootstrap(truth, predicted, group, n_resamples=5000)
    assert interval.n_short_of_a_class / 5000 == pytest.approx(1 - (19 / 27) + 1 / 27, abs=0.03)
    assert interval.estimate == 0.25
    assert interval.high == 1.0  # case 0 drawn three times: class a alone, all right


def test_clustering_widens_and_more_groups_narrow(generator) -> None:
    truth = np.ones(400)
    case_is_right = np.repeat(generator.random(40) < 0.7, 10).astype(float)
    by_case = cluster_bootstrap(truth, case_is_right, np.repeat(np.arange(40), 10))
    by_tile = cluster_bootstrap(truth, case_is_right, np.arange(400))
    assert by_case.high - by_case.low > 2 * (by_tile.high - by_tile.low)
    assert by_case.low < by_case.estimate < by_case.high


def test_intervals_stay_in_range_and_a_perfect_score_has_no_width() -> None:
    perfect = cluster_bootstrap([0, 1, 0], [0, 1, 0], [0, 1, 2])
    ends = {perfect.low, perfect.high, perfect.t_low, perfect.t_high}
    assert ends == {1.0}
    poor = cluster_bootstrap([0, 0, 0], [0, 1, 1], [0, 1, 2])
    assert poor.t_low == 0.0
    assert poor.t_high <= 1.0


def test_refuses() -> None:
    with pytest.raises(ValueError, match="two groups and one resample or more; got 1 groups"):
        cluster_bootstrap([0, 1], [0, 1], [3, 3])
    with pytest.raises(ValueError, match="0 resamples"):
        cluster_bootstrap([0, 1], [0, 1], [3, 4], n_resamples=0)
    with pytest.raises(ValueError, match="metric needs to be one of"):
        cluster_bootstrap([0, 1], [0, 1], [3, 4], metric="f1")


def test_coverage_of_both_intervals() -> None:
    """400 studies of 40 cases, intra-case correlation: about 95 % hold the truth."""
    generator = np.random.default_rng(3)
    held = np.zeros(2)
    for _ in range(400):
        chance = generator.beta(2, 2, size=40)  # a case's own accuracy; 0.5 on average
        right = (generator.random((40, 8)) < chance[:, None]).ravel().astype(float)
        interval = cluster_bootstrap(
            np.ones(320), right, np.repeat(np.arange(40), 8), n_resamples=300
        )
        held += [
            interval.low <= 0.5 <= interval.high,
            interval.t_low <= 0.5 <= interval.t_high,
        ]
    assert 0.90 <= held[0] / 400 <= 0.98
    assert 0.92 <= held[1] / 400 <= 0.98
