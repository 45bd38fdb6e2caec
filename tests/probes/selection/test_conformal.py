"""Cut-offs against slow definitions; coverage by simulation of patients who differ."""

import numpy as np
import pytest

from anlage.probes.selection.conformal import conformal_sets, patients_needed
from anlage.probes.selection.nonconformity import APS, LAC, Nonconformity
from anlage.probes.selection.set_coverage import set_coverage
from anlage.probes.splits.split import Split

CLASSES = np.array(["a", "b", "c"])


def patients(generator, n_groups):
    """Rows of patients who differ; those with many tiles are easy, those with few are hard."""
    ease_G = generator.normal(1, 1.5, n_groups)
    n_rows_G = np.where(ease_G > 1, 20, generator.integers(1, 3, n_groups))
    group = np.repeat(np.arange(n_groups), n_rows_G)
    code = generator.integers(0, 3, len(group))
    logits = generator.normal(size=(len(group), 3))
    logits[np.arange(len(group)), code] += ease_G[group]
    odds = np.exp(logits)
    return odds / odds.sum(axis=1, keepdims=True), CLASSES[code], group


def calibrated(generator, n_groups=39, **settings):
    """Sets calibrated on patients, the last two of which are but the train and test sides."""
    table, truth, group = patients(generator, n_groups + 2)
    order = [np.flatnonzero(group == n_groups + side) for side in (0, 1)]
    split = Split(
        name="s", train=order[0], test=order[1], validation=np.flatnonzero(group < n_groups)
    )
    sets = conformal_sets(table, truth, CLASSES, split=split, group_N=group, **settings)
    return sets, table[split.validation], truth[split.validation], group[split.validation]


def oddity_of_truth(table, truth):
    return [1 - row[list(CLASSES).index(label)] for row, label in zip(table, truth, strict=True)]


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.975])
@pytest.mark.parametrize("seed", range(4))
def test_cutoffs_are_those_of_the_definitions(seed, coverage) -> None:
    sets, table, truth, group = calibrated(np.random.default_rng(seed), coverage=coverage)
    oddity = np.array(oddity_of_truth(table, truth))
    n = 39

    def share_at_most(cutoff):  # of n + 1 patients, the new one at infinity
        return sum(np.mean(oddity[group == g] <= cutoff) for g in range(n)) / (n + 1)

    assert sets.cutoff == min(c for c in oddity if share_at_most(c) >= coverage - 1e-9)
    sets, *_ = calibrated(np.random.default_rng(seed), coverage=coverage, promise="all rows")
    worst = sorted(max(oddity[group == g]) for g in range(n))
    assert sets.cutoff == worst[int(np.ceil(np.round((n + 1) * coverage, 9))) - 1]
    sets, *_ = calibrated(np.random.default_rng(seed), coverage=coverage, promise="drawn row")
    assert sets.cutoff in oddity


def test_one_row_a_patient_makes_all_promises_the_ordinary_quantile(generator) -> None:
    table, code = generator.dirichlet(np.ones(3), 60), generator.integers(0, 3, 60)
    split = Split(name="s", train=np.array([0]), test=np.array([1]), validation=np.arange(2, 60))
    cutoffs = {
        conformal_sets(
            table, CLASSES[code], CLASSES, split=split, group_N=np.arange(60), promise=promise
        ).cutoff
        for promise in ("row", "drawn row", "all rows")
    }
    oddity = np.sort(1 - table[np.arange(2, 60), code[2:]])
    assert cutoffs == {oddity[int(np.ceil(59 * 0.9)) - 1]}


@pytest.mark.parametrize("measure", [LAC, APS])
def test_sets_are_the_classes_up_to_the_cutoff_and_follow_the_seed(generator, measure) -> None:
    sets, *_ = calibrated(generator, nonconformity=measure, seed=3)
    table, _, group = patients(np.random.default_rng(8), 50)
    is_in = sets.sets(table)
    oddity = measure.of_classes(table, np.random.default_rng((3, 1)))
    assert is_in.tolist() == (oddity <= sets.cutoff).tolist()
    assert (is_in == sets.sets(table)).all()
    with pytest.raises(ValueError, match="other patients"):
        sets.sets(table, group)


def coverages(promise, measure, *, n_repeats, seed):
    """Rows, groups and whole groups covered by sets of many calibrations, on new patients."""
    generator = np.random.default_rng(seed)
    found = []
    for repeat in range(n_repeats):
        sets, *_ = calibrated(
            generator, coverage=0.9, promise=promise, nonconformity=measure, seed=repeat
        )
        table, truth, group = patients(generator, 60)
        reached = set_coverage(sets.sets(table), truth, CLASSES, group_N=group)
        found.append((reached.rows, reached.groups, reached.whole_groups))
    return np.mean(found, axis=0), np.std(found, axis=0) / np.sqrt(n_repeats)


@pytest.mark.parametrize("measure", [LAC, APS], ids=["lac", "aps"])
@pytest.mark.parametrize("promise", ["row", "drawn row"])
def test_a_random_row_of_a_new_patient_is_covered_as_promised(promise, measure) -> None:
    mean, error = coverages(promise, measure, n_repeats=150, seed=1)
    assert mean[1] > 0.9 - 2 * error[1]
    assert mean[1] < 0.9 + 1 / 40 + 3 * error[1]  # and sets are not needlessly large


@pytest.mark.parametrize("measure", [LAC, Nonconformity(kind="aps", is_randomised=False)])
def test_whole_patients_are_covered_as_promised(measure) -> None:
    mean, error = coverages("all rows", measure, n_repeats=150, seed=2)
    assert mean[2] > 0.9 - 2 * error[2]


def test_a_quantile_over_rows_covers_too_few_new_patients() -> None:
    generator = np.random.default_rng(3)
    found = []
    for _ in range(150):
        _, table, truth, group = calibrated(generator)
        oddity = np.sort(oddity_of_truth(table, truth))
        cutoff = oddity[int(np.ceil((len(oddity) + 1) * 0.9)) - 1]
        table, truth, group = patients(generator, 60)
        is_covered = np.array(oddity_of_truth(table, truth)) <= cutoff
        found.append(np.mean([is_covered[group == g].mean() for g in range(60)]))
    assert np.mean(found) < 0.8


def test_patients_needed_is_what_makes_the_rank_exist() -> None:
    for coverage in (0.5, 0.8, 0.9, 0.95, 0.99):
        needed = patients_needed(coverage)
        exists = [n for n in range(1, 200) if np.ceil(round((n + 1) * coverage, 9)) <= n]
        assert needed == exists[0]
        if needed > 2:
            with pytest.raises(ValueError, match=f"needs {needed} patients or more .* got"):
                calibrated(np.random.default_rng(0), n_groups=needed - 1, coverage=coverage)
        calibrated(np.random.default_rng(0), n_groups=max(needed, 5), coverage=coverage)


def test_the_guarantee_is_in_words(generator) -> None:
    sets, *_ = calibrated(generator, promise="all rows", coverage=0.8)
    assert "probability 0.8 or more, the true classes of all rows" in sets.guarantee
    assert "like the 39 of the calibration" in sets.guarantee


def wrong(**changes):
    table, truth, group = patients(np.random.default_rng(0), 42)
    rows = [np.flatnonzero(group == 40), np.flatnonzero(group == 41), np.flatnonzero(group < 40)]
    given = {
        "table": table,
        "truth": truth,
        "group_N": group,
        "split": Split(name="s", train=rows[0], test=rows[1], validation=rows[2]),
    } | changes
    return conformal_sets(given.pop("table"), given.pop("truth"), CLASSES, **given)


TABLE, TRUTH, GROUP = patients(np.random.default_rng(0), 42)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: wrong(promise="rows"), "a promise of row, drawn row, all rows"),
        (lambda: wrong(coverage=1.0), "coverage above 0 and below 1"),
        (lambda: wrong(coverage=0.99), "needs 99 patients or more .* got 40"),
        (lambda: wrong(table=np.log(TABLE)), "softmax"),
        (lambda: wrong(table=TABLE[:, :2]), "one column for each of 3"),
        (lambda: wrong(table=TABLE * np.nan), "NaN"),
        (lambda: wrong(truth=np.full(len(TRUTH), "a")), "two classes or more"),
        (lambda: wrong(truth=np.char.upper(TRUTH)), "among the 3 classes"),
        (lambda: wrong(group_N=GROUP // 2), "one side only"),
        (
            lambda: wrong(split=Split(name="s", train=np.array([0]), test=np.array([9]))),
            "validation side",
        ),
        (lambda: patients_needed(1), "above 0 and below 1"),
    ],
)
def test_refuses(call, match) -> None:
    with pytest.raises(ValueError, match=match):
        call()
