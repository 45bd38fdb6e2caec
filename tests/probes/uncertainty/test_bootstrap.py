import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, r2_score, roc_auc_score

from anlage.probes.metrics.classification import ACCURACY, BALANCED_ACCURACY
from anlage.probes.metrics.metric import metric_of_rows
from anlage.probes.metrics.ranking import AUROC
from anlage.probes.uncertainty import resampling
from anlage.probes.uncertainty.bootstrap import cluster_bootstrap
from reference.slow_bootstrap import slow_bootstrap, widened_tails

PLAIN = {"method": "percentile", "stratify": False}
AUROC_OF_ROWS = metric_of_rows(
    roc_auc_score, name="auroc", columns=("truth", "score"), bounds=(0, 1), has_classes=True
)


@pytest.fixture
def scored(generator):
    """23 cases of 1 to 6 tiles, 3 classes, some cases of mixed class, predictions 60 % right."""
    group = np.repeat(np.arange(23), generator.integers(1, 7, 23))
    truth = np.where(generator.random(len(group)) < 0.8, group % 3, 2)
    wrong = generator.random(len(group)) > 0.6
    return truth, np.where(wrong, generator.integers(0, 3, len(group)), truth), group


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
@pytest.mark.filterwarnings("ignore:A single label was found")
@pytest.mark.parametrize("block", [2**22, 23 * 7])
def test_is_the_slow_loop_number_for_number(scored, monkeypatch, block) -> None:
    monkeypatch.setattr(resampling, "BLOCK_WEIGHTS", block)
    truth, predicted, group = scored
    values = slow_bootstrap(
        balanced_accuracy_score, (truth, predicted), group, n_resamples=200, seed=5
    )
    fast = cluster_bootstrap(
        BALANCED_ACCURACY, (truth, predicted), group, n_resamples=200, seed=5, **PLAIN
    )
    assert (fast.low, fast.high) == pytest.approx(tuple(np.quantile(values, widened_tails(23))))
    assert fast.estimate == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert (fast.n_groups, fast.n_resamples, fast.is_unreliable) == (23, 200, False)
    assert (fast.method, fast.n_undefined, fast.n_always_drawn) == ("percentile", 0, 0)


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_is_the_same_for_every_size_of_block(scored, monkeypatch, method) -> None:
    truth, predicted, group = scored

    def interval():
        return cluster_bootstrap(
            BALANCED_ACCURACY, (truth, predicted), group, n_resamples=200, seed=5, method=method
        )

    whole = interval()
    monkeypatch.setattr(resampling, "BLOCK_WEIGHTS", 23 * 7)
    assert interval() == whole
    assert whole.method == method


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
@pytest.mark.filterwarnings("ignore:A single label was found")
def test_any_function_of_rows_gives_what_the_fast_metric_gives(scored) -> None:
    truth, predicted, group = scored
    slow = metric_of_rows(
        balanced_accuracy_score,
        name="slow",
        columns=("truth", "predicted"),
        bounds=(0, 1),
        has_classes=True,
    )
    here = cluster_bootstrap(
        BALANCED_ACCURACY, (truth, predicted), group, n_resamples=60, stratify=False
    )
    for stratify in (True, False):  # whole rows have no fractions of weights: never in strata
        there = cluster_bootstrap(
            slow, (truth, predicted), group, n_resamples=60, stratify=stratify
        )
        assert there.low == pytest.approx(here.low)
        assert there.high == pytest.approx(here.high)
        assert there.t_low == pytest.approx(here.t_low)


def test_t_interval_of_equal_groups_is_the_textbook_one(generator) -> None:
    group = np.repeat(np.arange(12), 5)
    correct = generator.random(60) < 0.5
    interval = cluster_bootstrap(ACCURACY, (np.ones(60), correct.astype(float)), group)
    means = correct.reshape(12, 5).mean(1)
    low, high = stats.t.interval(0.95, 11, loc=means.mean(), scale=stats.sem(means))
    assert (interval.t_low, interval.t_high) == pytest.approx((low, high))
    assert interval.is_unreliable


def test_confidence_is_of_both_intervals(generator) -> None:
    columns = (np.ones(40), (generator.random(40) < 0.5).astype(float))
    wide, narrow = (
        cluster_bootstrap(ACCURACY, columns, np.arange(40), confidence=c) for c in (0.99, 0.8)
    )
    assert wide.low < narrow.low < narrow.high < wide.high
    assert wide.t_low < narrow.t_low < narrow.t_high < wide.t_high
    assert (wide.confidence, narrow.confidence) == (0.99, 0.8)


def test_bootstrap_of_two_groups_is_a_known_distribution() -> None:
    """One case all right, one all wrong: a resample scores 0, 1/2, 1 with odds 1, 2, 1."""
    columns = ([1, 1, 1, 1], [1, 1, 0, 0])
    interval = cluster_bootstrap(ACCURACY, columns, [0, 0, 1, 1], **PLAIN)
    assert (interval.estimate, interval.low, interval.high) == (0.5, 0.0, 1.0)


def test_a_class_that_vanishes_is_counted_and_left_out_of_the_mean() -> None:
    """Class b lives in one of three cases: 8 of 27 resamples do not draw it."""
    columns, group = (["a", "a", "b"], ["a", "x", "x"]), [0, 1, 2]
    interval = cluster_bootstrap(BALANCED_ACCURACY, columns, group, n_resamples=5000, **PLAIN)
    assert interval.n_short_of_a_class / 5000 == pytest.approx(1 - (19 / 27) + 1 / 27, abs=0.03)
    assert interval.estimate == 0.25
    assert interval.high == 1.0  # case 0 drawn three times: class a alone, all right


def test_strata_keep_every_class_and_a_group_alone_is_counted() -> None:
    columns, group = (["a", "a", "b"], ["a", "x", "x"]), [0, 1, 2]
    interval = cluster_bootstrap(
        BALANCED_ACCURACY, columns, group, method="percentile", stratify=True
    )
    assert (interval.n_short_of_a_class, interval.n_always_drawn) == (0, 1)
    assert (interval.low, interval.high) == (0.0, 0.5)  # class a 0 to 1, class b always 0
    assert "1 alone in a class" in interval.in_words()


@pytest.mark.filterwarnings("ignore:Only one class is present")
def test_resamples_without_a_value_are_counted_and_left_out(generator) -> None:
    """AUROC of 12 cases, 2 of them positive: without strata some resamples have one class."""
    truth, group = np.repeat([1, 0], [2, 10]), np.arange(12)
    score = generator.random(12) + truth
    free = cluster_bootstrap(AUROC_OF_ROWS, (truth, score), group, n_resamples=400, stratify=False)
    assert free.n_undefined == pytest.approx(400 * (10 / 12) ** 12, abs=30)
    assert free.n_undefined == free.n_short_of_a_class
    assert np.isfinite([free.low, free.high]).all()
    kept = cluster_bootstrap(AUROC, (truth, score), group, n_resamples=400, stratify=True)
    assert (kept.n_undefined, kept.n_short_of_a_class) == (0, 0)
    assert f"{free.n_undefined} resamples without a value left out" in free.in_words()


@pytest.mark.filterwarnings("ignore:Only one class is present")
def test_without_the_only_positive_nothing_is_known() -> None:
    columns = ([1, 0, 0, 0], [0.7, 0.8, 0.2, 0.1])
    interval = cluster_bootstrap(AUROC, columns, np.arange(4), n_resamples=50, stratify=True)
    assert (interval.t_low, interval.t_high) == (0, 1)
    assert interval.n_always_drawn == 1


def test_metrics_without_classes_are_not_stratified(generator) -> None:
    r2 = metric_of_rows(r2_score, name="r2", columns=("truth", "value"))
    truth = generator.normal(size=30)
    columns, group = (truth, truth + generator.normal(size=30)), np.arange(30)
    with_, without = (
        cluster_bootstrap(r2, columns, group, n_resamples=100, stratify=s) for s in (True, False)
    )
    assert with_ == without
    assert with_.n_always_drawn == 0


def test_clustering_widens(generator) -> None:
    columns = (np.ones(400), np.repeat(generator.random(40) < 0.7, 10).astype(float))
    by_case = cluster_bootstrap(ACCURACY, columns, np.repeat(np.arange(40), 10))
    by_tile = cluster_bootstrap(ACCURACY, columns, np.arange(400))
    assert by_case.high - by_case.low > 2 * (by_tile.high - by_tile.low)
    assert by_case.low < by_case.estimate < by_case.high


def test_intervals_stay_in_range_and_a_perfect_score_has_no_width() -> None:
    perfect = cluster_bootstrap(BALANCED_ACCURACY, ([0, 1, 0], [0, 1, 0]), [0, 1, 2])
    ends = {perfect.low, perfect.high, perfect.t_low, perfect.t_high}
    assert ends == {1.0}
    assert perfect.method == "percentile"  # all resamples are equal: BCa has no value
    poor = cluster_bootstrap(BALANCED_ACCURACY, ([0, 0, 0], [0, 1, 1]), [0, 1, 2])
    assert poor.t_low == 0.0
    assert poor.t_high <= 1.0


@pytest.mark.parametrize(
    ("columns", "group", "settings", "message"),
    [
        (([0, 1], [0, 1]), [3, 3], {}, "needs two groups or more; got 1 groups"),
        (([0, 1], [0, 1]), [3, 4], {"n_resamples": 0}, "0 resamples"),
        (([0, 1], [0, 1]), [3, 4], {"confidence": 95}, "confidence 95"),
        (([0, 1], [0, 1]), [3, 4], {"method": "BCA"}, "one of ('bca', 'percentile'); got 'BCA'"),
        (([0, 1],), [3, 4], {}, "needs the columns truth, predicted; got 1 columns"),
        (([0, 1], [0, 1, 1]), [3, 4], {}, "predicted needs one value for each of 2 rows"),
        (([0, 1], [0, 1]), [3, 4, 5], {}, "groups needs one value for each of 2 rows"),
        (([], []), [], {}, "needs one row or more; got none"),
        (([0, 1], [0, 1]), [3.0, np.nan], {}, "groups needs a value in each row"),
    ],
)
def test_refuses(columns, group, settings, message) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        cluster_bootstrap(ACCURACY, columns, group, **settings)
    assert message in str(error.value)


def test_refuses_a_metric_without_a_value() -> None:
    nothing = metric_of_rows(lambda _: float("nan"), name="nothing", columns=("truth",))
    with pytest.raises(ValueError, match="nothing"):
        cluster_bootstrap(nothing, ([0, 1],), [3, 4])


def test_real_predictions_of_texture_features(shared_data) -> None:
    """kNN on 49 colour/texture features of CRC tiles, runs of 5 in the place of patients."""
    stored = np.load(shared_data / "embeddings" / "kather2016_texture" / "best3_49.npz")
    x, y = stored["X"], stored["y"]
    test = np.arange(0, len(y), 5)
    train = np.setdiff1d(np.arange(len(y)), test)
    nearest = ((x[test][:, None, :8] - x[train[::7]][None, :, :8]) ** 2).sum(2).argmin(1)
    predicted = y[train[::7]][nearest]
    interval = cluster_bootstrap(
        BALANCED_ACCURACY, (y[test], predicted), np.arange(len(test)) // 5, n_resamples=500
    )
    assert interval.low < interval.estimate < interval.high
    assert interval.n_short_of_a_class == 0


def test_blocks_of_the_jackknife_change_little(generator, monkeypatch) -> None:
    columns = (np.ones(1200), (generator.random(1200) < 0.9).astype(float))
    one_by_one = cluster_bootstrap(ACCURACY, columns, np.arange(1200), n_resamples=300)
    monkeypatch.setattr(resampling, "MOST_LEFT_OUT", 400)
    in_blocks = cluster_bootstrap(ACCURACY, columns, np.arange(1200), n_resamples=300)
    assert in_blocks.t_low != one_by_one.t_low
    assert in_blocks.t_low == pytest.approx(one_by_one.t_low, abs=0.002)
    assert in_blocks.low == pytest.approx(one_by_one.low, abs=0.002)
    assert in_blocks.high == pytest.approx(one_by_one.high, abs=0.002)


def test_refuses_labels_that_are_missing_before_any_work() -> None:
    truth = np.array(["a", None, "b"], dtype=object)
    with pytest.raises(ValueError, match="truth needs a value in each row; got none in 1 rows"):
        cluster_bootstrap(ACCURACY, (truth, ["a", "b", "b"]), [0, 1, 2])
