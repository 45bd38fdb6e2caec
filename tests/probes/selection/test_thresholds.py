import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, roc_curve

from anlage.probes.selection.thresholds import (
    cost_threshold,
    f1_threshold,
    sensitivity_threshold,
    specificity_threshold,
    youden_threshold,
)
from anlage.probes.splits.grouped import train_validation_test
from anlage.probes.splits.split import Split


def drawn(seed, n_groups=50, decimals=1):
    """Scores rounded so that many are tied."""
    generator = np.random.default_rng(seed)
    group = np.repeat(np.arange(n_groups), generator.integers(1, 5, n_groups))
    truth = (generator.random(len(group)) < 0.35).astype(int)
    score = np.round(truth + generator.normal(size=len(group)), decimals)
    split = train_validation_test(truth, group, validation=0.4, test=0.3)
    return score, truth, {"split": split, "group_N": group}


def counts(score, truth, value):
    called = score >= value
    return [
        int(np.sum(called[truth == 1])), int(np.sum(~called[truth == 1])),
        int(np.sum(called[truth == 0])), int(np.sum(~called[truth == 0])),
    ]  # fmt: skip


def sensitivity(tp, fn, fp, tn):
    return tp / (tp + fn)


def specificity(tp, fn, fp, tn):
    return tn / (tn + fp)


def brute_force(score, truth, criterion, *, ties_to):
    """Of every cut there is, the best; of equal ones the lowest or highest."""
    cuts = [*np.unique(score), np.nextafter(score.max(), np.inf)]
    values = [round(criterion(*counts(score, truth, cut)), 12) for cut in cuts]
    best = [cut for cut, value in zip(cuts, values, strict=True) if value == max(values)]
    return min(best) if ties_to == "lowest" else max(best)


def at_least(share, main, other):
    """The largest ``other`` among the cuts whose ``main`` reaches the share."""
    return lambda *n: other(*n) if main(*n) >= share else -1.0


CASES = {
    "youden": (youden_threshold, {}, lambda *n: sensitivity(*n) + specificity(*n), "lowest"),
    "f1": (f1_threshold, {}, lambda tp, fn, fp, tn: 2 * tp / (2 * tp + fn + fp), "lowest"),
    "cost": (
        cost_threshold,
        {"cost_of_miss": 5, "cost_of_alarm": 1},
        lambda tp, fn, fp, tn: -(5 * fn + fp),
        "lowest",
    ),
    "sensitivity": (
        sensitivity_threshold,
        {"at_least": 0.9},
        at_least(0.9, sensitivity, specificity),
        "highest",
    ),
    "specificity": (
        specificity_threshold,
        {"at_least": 0.9},
        at_least(0.9, specificity, sensitivity),
        "lowest",
    ),
}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("case", CASES)
def test_is_the_best_of_all_cuts(case, seed) -> None:
    choose, settings, criterion, ties_to = CASES[case]
    score, truth, where = drawn(seed)
    threshold = choose(score, truth, **settings, **where)
    rows = where["split"].validation
    best = brute_force(score[rows], truth[rows], criterion, ties_to=ties_to)
    reached = criterion(*counts(score[rows], truth[rows], threshold.value))
    assert reached == pytest.approx(criterion(*counts(score[rows], truth[rows], best)))
    assert threshold.value == best
    found = counts(score[rows], truth[rows], threshold.value)
    assert threshold.sensitivity == pytest.approx(sensitivity(*found))
    assert threshold.specificity == pytest.approx(specificity(*found))


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_scikit_learn(seed) -> None:
    score, truth, where = drawn(seed, decimals=6)
    rows = where["split"].validation
    false, true, value = roc_curve(truth[rows], score[rows], drop_intermediate=False)
    youden = youden_threshold(score, truth, **where)
    assert youden.sensitivity + youden.specificity - 1 == pytest.approx((true - false).max())
    sensitive = sensitivity_threshold(score, truth, at_least=0.8, **where)
    assert sensitive.value == value[np.argmax(true >= 0.8)]
    best = f1_threshold(score, truth, **where)
    called = [f1_score(truth[rows], score[rows] >= cut) for cut in value]
    assert f1_score(truth[rows], best.apply(score[rows])) == pytest.approx(max(called))


def test_reaches_its_ends() -> None:
    score, truth, where = drawn(0)
    rows = where["split"].validation
    assert sensitivity_threshold(score, truth, at_least=1, **where).sensitivity == 1
    negative = score + 100 * (truth == 0)  # the highest scores are negatives
    none = specificity_threshold(negative, truth, at_least=1, **where)
    assert (none.specificity, none.sensitivity) == (1, 0)
    assert none.value > negative[rows].max()
    assert np.isfinite(none.value)
    assert not none.apply(negative[rows]).any()


def test_tells_where_it_comes_from_and_refuses_patients_it_was_chosen_on() -> None:
    score, truth, where = drawn(1)
    split, group = where["split"], where["group_N"]
    threshold = youden_threshold(torch.from_numpy(score), truth == 1, **where)
    assert threshold == youden_threshold(score, truth, **where)
    assert threshold.chosen_on.n_groups == len(set(group[split.validation]))
    assert threshold.n_positive_groups == len(
        {g for g, t in zip(group[split.validation], truth[split.validation], strict=True) if t}
    )
    called = threshold.apply(torch.from_numpy(score[split.test]), group[split.test])
    assert (called == (score[split.test] >= threshold.value)).all()
    with pytest.raises(ValueError, match="other patients than those it was chosen on"):
        threshold.apply(score, group)


def test_train_and_test_sides_are_not_read() -> None:
    score, truth, where = drawn(2)
    plain = f1_threshold(score, truth, **where)
    others = np.concatenate([where["split"].train, where["split"].test])
    truth, score[others] = truth.astype(object), np.nan
    truth[others] = None
    assert f1_threshold(score, truth.astype(float), **where) == plain


def chosen(choose=youden_threshold, score=None, truth=None, split=None, **settings):
    good, true, where = drawn(0)
    return choose(
        good if score is None else score,
        true if truth is None else truth,
        split=split or where["split"],
        group_N=where["group_N"],
        **settings,
    )


SCORE, TRUTH, WHERE = drawn(0)
NO_SIDE = Split(name="s", train=WHERE["split"].train, test=WHERE["split"].test)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: chosen(split=NO_SIDE), "test side chooses nothing"),
        (lambda: chosen(score=SCORE * np.nan), "scores needs finite numbers"),
        (lambda: chosen(score=SCORE[:, None]), "got shape"),
        (lambda: chosen(score=SCORE[:5]), "scores needs all"),
        (lambda: chosen(truth=TRUTH * 0), "two classes or more"),
        (lambda: chosen(truth=TRUTH + 1), "0 and 1.*\\[1, 2\\]"),
        (lambda: chosen(truth=TRUTH.astype(str)), "truth == name of the positive class"),
        (lambda: chosen(truth=TRUTH * np.nan), "0 and 1"),
        (lambda: chosen(sensitivity_threshold, at_least=0), "got 0"),
        (lambda: chosen(specificity_threshold, at_least=1.1), "got 1.1"),
        (lambda: chosen(cost_threshold, cost_of_miss=0, cost_of_alarm=1), "got 0 and 1"),
    ],
)
def test_refuses(call, match) -> None:
    with pytest.raises(ValueError, match=match):
        call()
