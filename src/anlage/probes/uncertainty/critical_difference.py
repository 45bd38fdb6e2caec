"""Models compared over many tasks: ranks, and groups of models that are not told apart."""

# Shape suffixes: T tasks, K models.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import factorial, prod

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from anlage.probes.uncertainty.multiple_tests import holm

AGREEMENT = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ModelRanking:
    """Models ranked over tasks, the best first.

    Attributes:
        model_K: (K,) names, by rising average rank.
        average_rank_K: (K,) float64, 1 is best; ties within a task share their ranks.
        n_tasks: T.
        friedman_p: P-value that all models are equal (chi-squared, corrected for ties).
        iman_davenport_p: The same from the F form, less timid; where all tasks agree and F is
            infinite, the chance of that.
        critical_difference: Nemenyi's: two average ranks further apart than this differ.
        nemenyi_groups: Maximal runs of models within one critical difference.
        wilcoxon_KK: (K, K) p-values of pairwise Wilcoxon signed-rank tests, Holm-adjusted over all
            pairs; 1 on the diagonal.
        wilcoxon_groups: Maximal runs of models no two of which differ by them.
    """

    model_K: tuple[str, ...]
    average_rank_K: NDArray[np.float64]
    n_tasks: int
    friedman_p: float
    iman_davenport_p: float
    critical_difference: float
    nemenyi_groups: tuple[tuple[str, ...], ...]
    wilcoxon_KK: NDArray[np.float64]
    wilcoxon_groups: tuple[tuple[str, ...], ...]


def rank_models(
    score_TK: ArrayLike,
    model_K: Sequence[str],
    *,
    is_better_larger: bool = True,
    level: float = 0.05,
) -> ModelRanking:
    """Rank models over tasks and say which are not told apart.

    Nemenyi's critical difference compares average ranks, so that a pair's verdict depends on the
    other models in the table; the Wilcoxon tests look at the pair alone and are to be preferred. T
    tasks cannot give a p-value under 2 / 2^T before Holm: with 5 tasks nothing is ever told apart.

    Args:
        score_TK: (T, K) score of each model on each task, finite; T >= 2, K >= 3.
        model_K: (K,) their names.
        is_better_larger: False for errors.
        level: Chance of any false claim, 0 to 1.

    Raises:
        ValueError: If there are too few tasks or models, a score is missing, or names do not fit.

    Source: Demsar 2006, JMLR 7:1 (Friedman, Nemenyi); Iman and Davenport 1980; Benavoli, Corani and
        Mangili 2016, JMLR 17:5 (pairwise tests in place of mean ranks).
    """
    score = _checked(score_TK, model_K)
    n_tasks, n_models = score.shape
    better = -score if is_better_larger else score
    average_K = stats.rankdata(better, axis=1).mean(axis=0)
    order = np.argsort(average_K, kind="stable")
    score, average_K = score[:, order], average_K[order]
    names = tuple(str(model_K[k]) for k in order)
    friedman_p, davenport_p = _friedman(score)
    difference = critical_difference(n_models, n_tasks, level=level)
    wilcoxon_KK = _wilcoxon(score)
    return ModelRanking(
        model_K=names,
        average_rank_K=average_K,
        n_tasks=n_tasks,
        friedman_p=friedman_p,
        iman_davenport_p=davenport_p,
        critical_difference=difference,
        nemenyi_groups=runs_not_apart(names, np.ptp(_pairs(average_K), axis=2) >= difference),
        wilcoxon_KK=wilcoxon_KK,
        wilcoxon_groups=runs_not_apart(names, wilcoxon_KK <= level),
    )


def critical_difference(n_models: int, n_tasks: int, *, level: float = 0.05) -> float:
    """Nemenyi's critical difference of average ranks: q sqrt(K (K + 1) / (6 T)).

    q is the quantile of the studentized range of K values, infinite degrees of freedom, over
    sqrt(2).

    Source: Demsar 2006, JMLR 7:1, section 3.2.2.
    """
    quantile = stats.studentized_range.ppf(1 - level, n_models, np.inf) / np.sqrt(2)
    return float(quantile * np.sqrt(n_models * (n_models + 1) / (6 * n_tasks)))


def runs_not_apart(
    name_K: Sequence[str], is_apart_KK: NDArray[np.bool_]
) -> tuple[tuple[str, ...], ...]:
    """Maximal runs of ranked models no two of which are told apart.

    A model in no run with others stands alone in its own. Runs may overlap: A = B and B = C do not
    make A = C.

    Args:
        name_K: (K,) names, the best first.
        is_apart_KK: (K, K) whether two models are told apart; symmetric.
    """
    runs: list[tuple[int, int]] = []
    for first in range(len(name_K)):
        last = first
        while last + 1 < len(name_K) and not is_apart_KK[first : last + 1, last + 1].any():
            last += 1
        if not runs or last > runs[-1][1]:
            runs.append((first, last))
    return tuple(tuple(name_K[first : last + 1]) for first, last in runs)


def adjusted_pairs(p_value_KK: NDArray[np.float64]) -> NDArray[np.float64]:
    """(K, K) Holm-adjusted p-values of all pairs, symmetric, from those above the diagonal."""
    adjusted_KK = np.ones_like(p_value_KK)
    above = np.triu_indices(len(p_value_KK), 1)
    adjusted_KK[above] = holm(p_value_KK[above])
    return np.minimum(adjusted_KK, adjusted_KK.T)


def _pairs(value_K: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack(np.meshgrid(value_K, value_K), axis=2)


def _friedman(score_TK: NDArray[np.float64]) -> tuple[float, float]:
    n_tasks, n_models = score_TK.shape
    if (score_TK == score_TK[:, :1]).all():
        return 1.0, 1.0
    chi, friedman_p = stats.friedmanchisquare(*score_TK.T)
    below = n_tasks * (n_models - 1) - chi
    if below <= AGREEMENT * n_tasks:  # all tasks rank all models alike: F is infinite
        return float(friedman_p), _odds_of_one_order(score_TK[0], n_tasks)
    freedom = (n_models - 1, (n_models - 1) * (n_tasks - 1))
    return float(friedman_p), float(stats.f.sf((n_tasks - 1) * chi / below, *freedom))


def _odds_of_one_order(score_K: NDArray[np.float64], n_tasks: int) -> float:
    """That T tasks rank K models alike by chance, with the ties they have."""
    _, n_tied = np.unique(score_K, return_counts=True)
    n_orders = factorial(len(score_K)) // prod(factorial(int(n)) for n in n_tied)
    return float(n_orders) ** (1 - n_tasks)


def _wilcoxon(score_TK: NDArray[np.float64]) -> NDArray[np.float64]:
    p_value_KK = np.ones((score_TK.shape[1],) * 2)
    for i, j in combinations(range(score_TK.shape[1]), 2):
        p_value_KK[i, j] = signed_rank_p_value(score_TK[:, i] - score_TK[:, j])
    return adjusted_pairs(p_value_KK)


def signed_rank_p_value(difference_T: NDArray[np.float64]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test, exact also with ties; 1 if all are zero.

    The sum of the ranks of the positive differences against all 2^T ways to give them signs, whose
    distribution grows by one rank at a time. Zeros take part in the ranking and have no sign
    (Pratt 1959). O(T^3) time, O(T^2) memory.

    Args:
        difference_T: (T,) differences.
    """
    twice_T = np.rint(2 * stats.rankdata(np.abs(difference_T))).astype(np.int64)
    is_signed = difference_T != 0
    n_positive = int(twice_T[difference_T > 0].sum())
    odds = np.ones(1)  # odds[s]: that twice the sum of ranks is s
    for rank in twice_T[is_signed]:
        grown = np.zeros(len(odds) + rank)
        grown[: len(odds)] += odds / 2
        grown[rank:] += odds / 2
        odds = grown
    return float(min(1.0, 2 * min(odds[: n_positive + 1].sum(), odds[n_positive:].sum())))


def _checked(score_TK: ArrayLike, model_K: Sequence[str]) -> NDArray[np.float64]:
    score = np.asarray(score_TK, dtype=np.float64)
    if score.ndim != 2 or score.shape[0] < 2 or score.shape[1] < 3:
        msg = (
            "rank_models: needs scores of two tasks or more by three models or more; got shape "
            f"{score.shape}. Compare two models with paired_bootstrap or paired_permutation."
        )
        raise ValueError(msg)
    if len(model_K) != score.shape[1] or len(set(model_K)) != len(model_K):
        msg = (
            f"rank_models: needs one name for each of {score.shape[1]} models, no two alike; got "
            f"{list(model_K)}. Name the columns."
        )
        raise ValueError(msg)
    if not np.isfinite(score).all():
        task, model = np.argwhere(~np.isfinite(score))[0]
        msg = (
            f"rank_models: needs a finite score in each cell; got {score[task, model]} for "
            f"{model_K[model]!r} on task {task}. Score it, or leave the task out for all models."
        )
        raise ValueError(msg)
    return score
