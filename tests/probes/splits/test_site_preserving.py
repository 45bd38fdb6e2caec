from itertools import product

import numpy as np
import pytest

from anlage.probes.splits.balance import balance_of
from anlage.probes.splits.site_preserving import site_preserving_folds


def cohort(seed, n_sites=7, n_patients=60):
    """Sites of different sizes and class mixes, two tiles a patient."""
    generator = np.random.default_rng(seed)
    odds = generator.dirichlet(np.ones(n_sites))
    site = np.concatenate([np.arange(n_sites), generator.choice(n_sites, n_patients, p=odds)])
    label = (generator.random(len(site)) < generator.random(n_sites)[site]).astype(int)
    label[generator.random(len(site)) < 0.1] = 2  # a rare class, which counts by its patients
    label[:n_sites] = np.arange(n_sites) % 3  # each class at several sites
    patient = np.arange(len(site))
    return np.repeat(label, 2), np.repeat(patient, 2), np.repeat(site, 2)


def objective(label, patient, fold, n_folds) -> int:
    """Of the source: sum over classes and folds of (folds * patients in it - patients)^2."""
    return sum(
        (n_folds * len(set(patient[(label == c) & (fold == k)])) - len(set(patient[label == c])))
        ** 2
        for c in np.unique(label)
        for k in range(n_folds)
    )


def fold_of(splits, n_rows):
    fold = np.empty(n_rows, dtype=int)
    for number, split in enumerate(splits):
        fold[split.test] = number
    return fold


@pytest.mark.parametrize("seed", range(6))
def test_is_as_even_as_the_best_of_all_assignments_of_sites(seed) -> None:
    label, patient, site = cohort(seed)
    best = min(
        objective(label, patient, np.array(folds)[site], 3)
        for folds in product(range(3), repeat=7)
        if folds[0] == 0 and len(set(folds)) == 3
    )
    splits = site_preserving_folds(label, patient, site, n_folds=3, seed=seed)
    assert objective(label, patient, fold_of(splits, len(site)), 3) == best
    for split in splits:
        assert not set(site[split.train]) & set(site[split.test])


def test_many_sites_come_out_even_the_same_whatever_the_order_of_rows() -> None:
    label, patient, site = cohort(3, n_sites=36, n_patients=900)
    splits = site_preserving_folds(label, patient, site, n_folds=3, seed=1)
    assert balance_of(splits, label, patient).worst < 0.01
    order = np.random.default_rng(0).permutation(len(site))
    mixed = site_preserving_folds(label[order], patient[order], site[order], n_folds=3, seed=1)
    for one, other in zip(splits, mixed, strict=True):
        assert set(site[one.test]) == set(site[order][other.test])


def folds_of(label, patient, site, **settings):
    return site_preserving_folds(label, patient, site, n_folds=2, **settings)


def test_a_class_of_one_site_is_dealt_if_accepted() -> None:
    label, patient, site = [0, 1, 0, 0], list("abcd"), list("xyzz")
    assert len(folds_of(label, patient, site, fewest_sites=1)) == 2


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: folds_of([0, 1, 0, 1], list("aacc"), list("xyzz")), "sites.*1 on two.*as a"),
        (lambda: folds_of([0, 1, 0, 1], list("abcd"), list("xxxx")), "2 to 1, the number of site"),
        (lambda: folds_of([0, 1, 0, 0], list("abcd"), list("xyzz")), "got 1 of class '1'"),
        (lambda: folds_of([0, 1, 0], list("abcd"), list("xyzz")), "labels needs one value"),
        (lambda: folds_of([0, 1, 0, 1], list("abc"), list("xyzz")), "groups needs one value"),
    ],
)
def test_refuses(call, match) -> None:
    with pytest.raises(ValueError, match=match):
        call()
