import warnings

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold

from anlage.probes.splits.balance import balance_of
from anlage.probes.splits.fixed import given_folds
from anlage.probes.splits.grouped import (
    grouped_folds,
    repeated_grouped_folds,
    train_validation_test,
)

MIXED = np.array([7, "7", "8"], dtype=object)
GROUP = np.array(["c", "a", "a", "b", "c", "d"])


def cohort(seed, n_groups=40, n_classes=4):
    """Patients of very different numbers of tiles, each mostly of one class, rare ones among."""
    generator = np.random.default_rng(seed)
    group = np.repeat(np.arange(n_groups), generator.geometric(0.05, n_groups))
    odds = 1 / np.arange(1, n_classes + 1)
    main = generator.choice(n_classes, n_groups, p=odds / odds.sum())
    main[: 6 * n_classes] = np.tile(np.arange(n_classes), 6)
    label = np.where(
        generator.random(len(group)) < 0.7,
        main[group],
        generator.integers(0, n_classes, len(group)),
    )
    return np.array(["w", "x", "y", "z"])[label], np.char.add("p", group.astype(str))


def scikit_learns(label, group, n_folds, seed):
    dealer = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    fold = np.empty(len(group), dtype=int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, (_, test) in enumerate(dealer.split(group[:, None], label, group)):
            fold[test] = number
    return given_folds(fold, group)


def test_grouped_folds_keep_groups_spread_classes_and_follow_the_seed() -> None:
    group = np.repeat(np.arange(30), 4)
    label = group % 3
    folds = [grouped_folds(label, group, n_folds=5, seed=seed) for seed in (0, 0, 1)]
    tests = [[split.test.tolist() for split in splits] for splits in folds]
    assert tests[0] == tests[1] != tests[2]
    assert sorted(row for test in tests[0] for row in test) == list(range(120))
    for split in folds[0]:
        assert not set(group[split.train]) & set(group[split.test])
        assert np.bincount(label[split.test]).tolist() == [8, 8, 8]


def test_patients_are_spread_more_evenly_than_by_scikit_learns_greedy_dealing() -> None:
    ours, theirs = [], []
    for seed in range(5):
        label, group = cohort(seed)
        ours.append(balance_of(grouped_folds(label, group, n_folds=5, seed=seed), label, group))
        theirs.append(balance_of(scikit_learns(label, group, 5, seed), label, group))
    assert np.mean([b.worst for b in ours]) < 0.6 * np.mean([b.worst for b in theirs])
    assert all(not b.never_tested for b in ours)


def test_a_class_of_two_patients_is_in_two_folds() -> None:
    for seed in range(5):
        label, group = cohort(seed)
        rare = np.isin(group, ["p3", "p7"])
        label = np.where(rare, "rare", label)
        balance = balance_of(grouped_folds(label, group, n_folds=5, seed=seed), label, group)
        rare_S = balance.n_groups_SC[:, balance.class_C.tolist().index("rare")]
        assert sorted(rare_S.tolist()) == [0, 0, 0, 1, 1]
        assert balance.never_trained == {}


@pytest.mark.parametrize("seed", range(3))
def test_folds_do_not_depend_on_the_order_of_rows(seed) -> None:
    label, group = cohort(seed)
    order = np.random.default_rng(seed + 100).permutation(len(group))
    plain = grouped_folds(label, group, n_folds=5, seed=seed)
    mixed = grouped_folds(label[order], group[order], n_folds=5, seed=seed)
    for one, other in zip(plain, mixed, strict=True):
        assert set(group[one.test]) == set(group[order][other.test])
    one = train_validation_test(label, group, seed=seed)
    other = train_validation_test(label[order], group[order], seed=seed)
    assert set(group[one.validation]) == set(group[order][other.validation])


def test_repeats_begin_with_the_folds_of_the_seed_and_differ() -> None:
    label, group = cohort(0)
    repeats = repeated_grouped_folds(label, group, n_folds=3, n_repeats=3, seed=7)
    tests = [[split.test.tolist() for split in splits] for splits in repeats]
    plain = grouped_folds(label, group, n_folds=3, seed=7)
    assert tests[0] == [split.test.tolist() for split in plain]
    assert tests[0] != tests[1] != tests[2]
    assert [split.name for split in repeats[1]] == [f"repeat 1 fold {fold}" for fold in range(3)]


@pytest.mark.parametrize("seed", range(5))
def test_train_validation_test_by_shares(seed) -> None:
    label, group = cohort(seed, n_groups=100)
    split = train_validation_test(label, group, validation=0.1, test=0.2, seed=seed)
    split.refuse_cut_groups(group)
    assert sum(len(rows) for rows in split.sides.values()) == len(group)
    n_groups = [len(set(group[rows])) for rows in split.sides.values()]
    assert np.abs(np.array(n_groups) / 100 - [0.7, 0.1, 0.2]).max() <= 0.05
    for rows in split.sides.values():
        assert set(label[rows]) == set(label)


def test_no_validation_and_one_lone_class_goes_to_train_if_accepted() -> None:
    label, group = cohort(1)
    label = np.where(group == "p5", "lone", label)
    split = train_validation_test(label, group, validation=0, test=0.25, fewest_groups=1)
    assert list(split.sides) == ["train", "test"]
    assert "p5" in group[split.train]


def lone_class(**settings):
    label, group = cohort(1)
    return grouped_folds(np.where(group == "p5", "lone", label), group, n_folds=5, **settings)


def test_a_class_of_one_patient_is_dealt_if_accepted() -> None:
    assert len(lone_class(fewest_groups=1)) == 5


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: grouped_folds([0] * 6, GROUP, n_folds=5), "2 to 4, the number of groups"),
        (lambda: grouped_folds([0] * 6, GROUP, n_folds=1), "2 to 4, the number of groups"),
        (lambda: grouped_folds([0] * 5, GROUP, n_folds=2), "labels needs one value"),
        (lambda: grouped_folds([0] * 6, [None] * 6, n_folds=2), "groups needs a value"),
        (
            lambda: grouped_folds([0] * 3, ["p1", "p1 ", "q"], n_folds=2),
            "one spelling; got .*'p1 '",
        ),
        (lambda: grouped_folds([0] * 3, MIXED, n_folds=2), "one spelling; got '7' and 7"),
        (lone_class, "needs 2 groups .* got 1 of class 'lone'.*fewest_groups=1"),
        (lambda: repeated_grouped_folds([0] * 6, GROUP, n_folds=2, n_repeats=0), "got 0"),
        (lambda: train_validation_test([0] * 6, GROUP, test=0), "test > 0"),
        (lambda: train_validation_test([0] * 6, GROUP, test=0.6, validation=0.4), "train left"),
        (lambda: train_validation_test([0] * 2, ["a", "b"]), "each of 3 sides; got 2"),
    ],
)
def test_refuses(call, match) -> None:
    with pytest.raises(ValueError, match=match):
        call()
