"""Is one model better than another? Swap both models' predictions of whole patients and see."""

# Shape suffixes: N rows, G groups (patients), R swappings.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from anlage.probes.checks import Rows
from anlage.probes.metrics.metric import Columns, Metric
from anlage.probes.uncertainty.columns import columns_of_two
from anlage.probes.uncertainty.resampling import group_codes

BLOCK_WEIGHTS = 2**21
TIE = 1e-12


@dataclass(frozen=True, kw_only=True, slots=True)
class PermutationTest:
    """What swapping two models' predictions says about their difference.

    Attributes:
        difference: Metric of model a minus that of model b.
        p_value: Two-sided: share of the swappings, the one observed among them, whose difference is
            at least as large. At least 1 / (1 + n_permutations).
        n_groups: Groups (patients) that were swapped whole.
        n_permutations: Swappings drawn, without the one observed; all others there are if exact.
        is_exact: All 2^G swappings were tried.
        n_undefined: Swappings under which the metric had no value; counted as at least as large.
        used_ranks: Scores were replaced by their ranks within each model first.
    """

    difference: float
    p_value: float
    n_groups: int
    n_permutations: int
    is_exact: bool
    n_undefined: int
    used_ranks: bool


def paired_permutation(
    metric: Metric,
    columns_a: Sequence[Rows],
    columns_b: Sequence[Rows],
    group_N: Rows,
    *,
    n_permutations: int = 10_000,
    seed: int = 0,
    rank_scores: bool | None = None,
) -> PermutationTest:
    """Two-sided paired permutation test of a metric's difference, patients swapped whole.

    If both models are equally good on every patient, nothing changes when their predictions of a
    patient change places (with all rows of the patient, so that rows need not be independent). For
    an average over patients that flips signs; here both metrics are computed anew, so any metric
    will do. Predictions must be exchangeable: labels are, and so are probabilities meant as such;
    scores on scales of their own are not, so for metrics that only look at the order (AUROC, AP,
    C-index, Spearman) they are first replaced by their ranks within each model.

    Args:
        metric: What is scored.
        columns_a: Of the metric, for model a.
        columns_b: The same for model b; the first column is the same.
        group_N: (N,) group (patient) of each row.
        n_permutations: Swappings drawn; all 2^G are tried where they are no more than this.
        seed: Of the draws.
        rank_scores: Whether to rank columns of fractions that differ between the models; None ranks
            each column of numbers by which both metrics stay what they were.

    Returns:
        The difference and its p-value, (1 + n at least as large) / (1 + n_permutations). float64;
        weights of at most 2 million groups at a time, same draws for every size of block.

    Raises:
        ValueError: If columns do not fit, the models have other first columns, there are fewer than
            two groups, no swapping is asked for, or the metric has no value.

    Source: Venkatraman and Begg 1996, Biometrika 83:835 (ranks within each reader before swapping);
        Phipson and Smyth 2010 (the added ones). Differences: average ranks are kept, not broken.
    """
    who = "paired_permutation"
    if n_permutations < 1:
        msg = f"{who}: needs one permutation or more; got {n_permutations}. Use 10000."
        raise ValueError(msg)
    a, b = columns_of_two(who, metric, columns_a, columns_b)
    group_G, code_N = group_codes(who, group_N, len(a[0]))
    n_groups = len(group_G)
    before = np.array([metric(*a), metric(*b)])
    a, b, used_ranks = _exchangeable(metric, a, b, rank_scores=rank_scores)
    both = tuple(np.concatenate(pair) for pair in zip(a, b, strict=True))
    score = metric.over_groups(both, np.concatenate([code_N, code_N + n_groups]), 2 * n_groups)

    def difference(keep_RG: NDArray[np.float64]) -> NDArray[np.float64]:
        swap_RG = 1 - keep_RG
        return score(np.hstack([keep_RG, swap_RG])) - score(np.hstack([swap_RG, keep_RG]))

    observed = float(difference(np.ones((1, n_groups)))[0])
    if not np.isfinite(observed):
        msg = f"{who}: {metric.name} needs to have a value for both models; got {before.tolist()}."
        raise ValueError(msg + " Test on rows with cases of every class.")
    is_exact = n_groups < 63 and 2**n_groups - 1 <= n_permutations
    n_drawn = 2**n_groups - 1 if is_exact else n_permutations
    least = abs(observed) - TIE * max(1.0, abs(observed))
    n_as_large = n_undefined = 0
    for keep_RG in _swappings(n_groups, n_drawn, seed=seed, is_exact=is_exact):
        value_R = difference(keep_RG)
        n_undefined += int(np.isnan(value_R).sum())
        n_as_large += int((~(np.abs(value_R) < least)).sum())
    return PermutationTest(
        difference=float(before[0] - before[1]),
        p_value=(1 + n_as_large) / (1 + n_drawn),
        n_groups=n_groups,
        n_permutations=n_drawn,
        is_exact=is_exact,
        n_undefined=n_undefined,
        used_ranks=used_ranks,
    )


def _swappings(
    n_groups: int, n_drawn: int, *, seed: int, is_exact: bool
) -> Iterator[NDArray[np.float64]]:
    """(r, G) float64, 1 where a group's predictions stay and 0 where they change places."""
    generator = np.random.default_rng(seed)
    n_block = max(1, BLOCK_WEIGHTS // n_groups)
    for start in range(0, n_drawn, n_block):
        n_rows = min(n_block, n_drawn - start)
        if is_exact:
            number_R = np.arange(start + 1, start + 1 + n_rows)  # 0 is the one observed
            swap_RG = (number_R[:, None] >> np.arange(n_groups)) & 1
        else:
            swap_RG = (generator.random((n_rows, n_groups)) < 0.5).astype(np.int64)
        yield (1 - swap_RG).astype(np.float64)


def _exchangeable(
    metric: Metric, a: Columns, b: Columns, *, rank_scores: bool | None
) -> tuple[Columns, Columns, bool]:
    """Both models' columns, with scores of different scales made ranks; whether that was done."""
    used_ranks = False
    for place, (x, y) in enumerate(zip(a, b, strict=True)):
        kinds = {x.dtype.kind, y.dtype.kind}
        if rank_scores is False or not kinds <= set("iuf") or np.array_equal(x, y):
            continue
        ranked = [(*c[:place], _ranks(c[place]), *c[place + 1 :]) for c in (a, b)]
        if (rank_scores and "f" in kinds) or (
            _is_same(metric, ranked[0], a) and _is_same(metric, ranked[1], b)
        ):
            a, b, used_ranks = ranked[0], ranked[1], True
    return a, b, used_ranks


def _ranks(score: NDArray[Any]) -> NDArray[np.float64]:
    """Ranks within a model, ties averaged, as shares in (0, 1); of each column on its own."""
    ranks: NDArray[np.float64] = (rankdata(score, axis=0) - 0.5) / len(score)
    return ranks


def _is_same(metric: Metric, ranked: Columns, raw: Columns) -> bool:
    try:
        return bool(np.isclose(metric(*ranked), metric(*raw), rtol=TIE, atol=TIE))
    except (ValueError, TypeError, LookupError):  # ranks are no labels
        return False
