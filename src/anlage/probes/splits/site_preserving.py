"""Folds in which no hospital is both trained on and tested, classes as even as sites allow."""

# Shape suffixes: N rows (tiles), P patients, S sites, C classes.

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anlage.probes.checks import labels_of
from anlage.probes.splits.dealing import deal
from anlage.probes.splits.fixed import one_split_a_value
from anlage.probes.splits.split import Split, refuse_cut_groups

N_STARTS = 40


def site_preserving_folds(
    label_N: ArrayLike,
    group_N: ArrayLike,
    site_N: ArrayLike,
    *,
    n_folds: int = 3,
    seed: int = 0,
    fewest_sites: int = 2,
) -> list[Split]:
    """Folds made of whole sites, so that a site's stain and scanner cannot stand in for a class.

    Minimises the sum over folds and classes of (patients of the class in the fold - patients of
    the class / folds)^2. ``balance_of`` says how even the folds came out: a site that has most
    patients of a class makes any assignment uneven.

    Args:
        label_N: (N,) classes; a patient of two classes counts in both.
        group_N: (N,) patients.
        site_N: (N,) site (hospital, tissue source site) of each row.
        n_folds: Folds, 2 to the number of sites.
        seed: Of the search's starts; with few sites all seeds give the same folds but for names.
        fewest_sites: Sites a class needs. A class of one site is tested without having been
            trained on, and the site gives it away; 1 accepts that.

    Returns:
        Splits named ``0`` to ``n_folds - 1``; each row is tested once.

    Raises:
        ValueError: If a patient is at two sites, there are fewer sites than folds, or a class has
            too few sites.

    Source: Howard et al. 2021, The impact of site-specific digital histology signatures on deep
        learning model accuracy and bias, Nature Communications 12:4423, Methods, and the authors'
        code for the objective. Theirs is solved by a mixed-integer solver until a time limit; here
        by many greedy starts with moves and swaps, which no clock decides.
    """
    who = "site_preserving_folds"
    site = labels_of(who, "sites", site_N)
    label = labels_of(who, "labels", label_N, n_rows=len(site))
    refuse_cut_groups(f"{who} (sites)", group_N, site)
    site_S, site_code_N = np.unique(site, return_inverse=True)
    if not 2 <= n_folds <= len(site_S):
        msg = (
            f"{who}: n_folds needs to be 2 to {len(site_S)}, the number of sites; "
            f"got {n_folds}. Ask for fewer folds."
        )
        raise ValueError(msg)
    patients_SC = _patients(label, np.asarray(group_N), site_code_N, len(site_S))
    _refuse_few_sites(who, np.unique(label), patients_SC, fewest_sites)
    fold_S = deal(
        patients_SC / patients_SC.sum(),
        np.full(n_folds, 1 / n_folds),
        np.random.default_rng((seed, 0)),
        spreads_first=False,
        n_starts=N_STARTS,
    )
    return one_split_a_value(who, fold_S[site_code_N])


def _patients(
    label: NDArray[Any], group: NDArray[Any], site_code_N: NDArray[np.int64], n_sites: int
) -> NDArray[np.float64]:
    """(S, C) patients of each class at each site."""
    class_C, label_code_N = np.unique(label, return_inverse=True)
    group_code_N = np.unique(group, return_inverse=True)[1]
    seen = np.unique(np.stack([site_code_N, label_code_N, group_code_N], axis=1), axis=0)
    patients_SC = np.zeros((n_sites, len(class_C)))
    np.add.at(patients_SC, (seen[:, 0], seen[:, 1]), 1)
    return patients_SC


def _refuse_few_sites(
    who: str, class_C: NDArray[Any], patients_SC: NDArray[np.float64], fewest: int
) -> None:
    n_sites_C = (patients_SC > 0).sum(axis=0)
    few = np.flatnonzero(n_sites_C < fewest)
    if len(few):
        first = few[0]
        msg = (
            f"{who}: each class needs {fewest} sites or more, so that one can train while another "
            f"tests; got {n_sites_C[first]} of class {str(class_C[first])!r}. Add sites, drop or "
            f"merge the class, or accept that it is never trained on while tested with "
            f"fewest_sites={n_sites_C[first]}."
        )
        raise ValueError(msg)
