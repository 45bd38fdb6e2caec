import numpy as np
import pytest
from scipy import stats

from anlage.probes.metrics.classification import ACCURACY, BALANCED_ACCURACY
from anlage.probes.metrics.metric import metric_of_rows
from anlage.probes.metrics.ranking import AUROC
from anlage.probes.uncertainty.bootstrap import cluster_bootstrap
from anlage.probes.uncertainty.paired import paired_bootstrap
from anlage.probes.uncertainty.sources_of_variance import compare_over_seeds, variance_sources

N_PATIENTS = 40


@pytest.fixture
def rows():
    group = np.repeat(np.arange(N_PATIENTS), 5)
    return group % 2, group


def seeds(generator, truth, chances):
    """Predictions of a model for each seed, right with so much chance."""
    return [
        (truth, np.where(generator.random(len(truth)) < chance, truth, 1 - truth))
        for chance in chances
    ]


def test_one_seed_is_the_cluster_bootstrap(rows, generator) -> None:
    truth, group = rows
    columns = seeds(generator, truth, [0.8])
    found = variance_sources(BALANCED_ACCURACY, columns, group, n_resamples=300)
    assert found.data == cluster_bootstrap(BALANCED_ACCURACY, columns[0], group, n_resamples=300)
    assert np.isnan(found.seeds.std)
    assert found.folds is None
    assert "one only" in found.in_words()


def test_seeds_and_folds_are_told_apart(rows, generator) -> None:
    truth, group = rows
    columns = seeds(generator, truth, [0.7, 0.8, 0.9])
    fold = group % 4
    found = variance_sources(ACCURACY, columns, group, fold_N=fold, n_resamples=300)
    values = [ACCURACY(*c) for c in columns]
    assert found.seeds.values == pytest.approx(values)
    assert found.seeds.std == pytest.approx(np.std(values, ddof=1))
    expected = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert found.seeds.t_interval() == pytest.approx(expected)
    assert found.data.estimate == pytest.approx(np.mean(values))
    by_fold = [
        np.mean([ACCURACY(t[fold == f], p[fold == f]) for t, p in columns]) for f in range(4)
    ]
    assert found.folds.values == pytest.approx(by_fold)
    lines = found.in_words().splitlines()
    assert [line.split(":")[0] for line in lines] == ["patients", "seeds", "folds"]
    assert "40 patients" in lines[0]
    assert "over 3 seeds" in lines[1]
    assert "no interval" in lines[2]


def test_equal_seeds_have_no_spread_but_patients_still_do(rows, generator) -> None:
    truth, group = rows
    columns = seeds(generator, truth, [0.8])
    found = variance_sources(ACCURACY, columns * 5, group, n_resamples=300)
    assert found.seeds.std == pytest.approx(0, abs=1e-12)
    one = cluster_bootstrap(ACCURACY, columns[0], group, n_resamples=300)
    assert (found.data.low, found.data.high) == pytest.approx((one.low, one.high))


def test_averaging_seeds_narrows_what_they_alone_vary(rows, generator) -> None:
    """Each seed wrong on other rows: the mean over 20 seeds hardly depends on the patients."""
    truth, group = rows
    columns = seeds(generator, truth, [0.8] * 20)
    one, many = (
        variance_sources(ACCURACY, c, group, n_resamples=300).data for c in (columns[:1], columns)
    )
    assert many.high - many.low < (one.high - one.low) / 2


def test_folds_without_a_value_are_counted(generator) -> None:
    truth = np.repeat([0, 1], 20)
    score, group = generator.random(40), np.arange(40)
    fold = np.where(group < 10, 0, group % 2 + 1)  # fold 0 has no positive
    found = variance_sources(AUROC, [(truth, score)], group, fold_N=fold, n_resamples=50)
    assert np.isnan(found.folds.values[0])
    assert np.isfinite(found.folds.mean)
    assert "over 2 folds, 1 more without a value" in found.in_words()


def test_comparison_pairs_patients_and_not_seeds(rows, generator) -> None:
    truth, group = rows
    a, b = seeds(generator, truth, [0.9] * 4), seeds(generator, truth, [0.7] * 3)
    found = compare_over_seeds(ACCURACY, a, b, group, n_resamples=300)
    values = [[ACCURACY(*c) for c in columns] for columns in (a, b)]
    assert found.data.estimate == pytest.approx(np.mean(values[0]) - np.mean(values[1]))
    ends = stats.ttest_ind(*values, equal_var=False).confidence_interval()
    assert (found.seeds_low, found.seeds_high) == pytest.approx((ends.low, ends.high))
    assert found.shows_a_difference
    assert found.data.p_value < 0.05
    single = compare_over_seeds(ACCURACY, a[:1], b[:1], group, n_resamples=300)
    assert single.data == paired_bootstrap(ACCURACY, a[0], b[0], group, n_resamples=300)
    assert not single.shows_a_difference  # what training again would change is not known


def test_patients_alone_do_not_show_a_difference_that_seeds_explain(rows, generator) -> None:
    truth, group = rows
    a, b = seeds(generator, truth, [0.95, 0.55]), seeds(generator, truth, [0.5, 0.6])
    found = compare_over_seeds(ACCURACY, a, b, group, n_resamples=300)
    assert found.data.low > 0
    assert found.seeds_low < 0 < found.seeds_high
    assert not found.shows_a_difference


def test_refuses(rows, generator) -> None:
    truth, group = rows
    columns = seeds(generator, truth, [0.9, 0.8])
    with pytest.raises(ValueError, match="predictions of one seed or more; got none"):
        variance_sources(ACCURACY, [], group)
    with pytest.raises(ValueError, match="truth needs to be the same"):
        variance_sources(ACCURACY, [columns[0], (1 - truth, columns[1][1])], group)
    with pytest.raises(ValueError, match="folds needs one value for each of 200 rows"):
        variance_sources(ACCURACY, columns, group, fold_N=[0, 1])


def test_few_patients_never_show_a_difference(generator) -> None:
    group = np.repeat(np.arange(10), 20)
    truth = group % 2
    a, b = seeds(generator, truth, [0.99] * 4), seeds(generator, truth, [0.5] * 4)
    found = compare_over_seeds(ACCURACY, a, b, group, n_resamples=200)
    assert found.data.low > 0
    assert found.seeds_low > 0
    assert found.data.is_unreliable
    assert not found.shows_a_difference


def test_folds_of_one_patient_have_no_value_each(generator) -> None:
    truth, group = np.repeat([0, 1], 20), np.arange(40)
    columns = [(truth, generator.random(40))]
    found = variance_sources(AUROC, columns, group, fold_N=group, n_resamples=50)
    assert found.in_words().splitlines()[-1] == "folds: none of 40 has a value on its own"


def test_functions_of_rows_are_scored_over_seeds_too(rows, generator) -> None:
    truth, group = rows
    columns = seeds(generator, truth, [0.7, 0.8])
    slow = metric_of_rows(
        lambda t, p: float((t == p).mean()),
        name="slow",
        columns=("truth", "predicted"),
        has_classes=True,
    )
    found = variance_sources(slow, columns, group, n_resamples=50)
    assert found.data.estimate == pytest.approx(np.mean([ACCURACY(*c) for c in columns]))
    compared = compare_over_seeds(slow, columns, columns, group, n_resamples=50)
    assert compared.data.estimate == 0
