"""McNemar's test: is one model right more often than another, one row a patient?"""

# Shape suffixes: N rows (patients).

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import binom

from anlage.probes.checks import Rows, labels_of
from anlage.probes.metrics.classification import refuse_mixed


@dataclass(frozen=True, kw_only=True, slots=True)
class McNemarTest:
    """Rows that only one of two models predicts right, and what they say.

    Attributes:
        n_only_a: Rows that model a alone predicts right.
        n_only_b: Rows that model b alone predicts right.
        n_rows: All rows.
        p_exact: Two-sided exact binomial p; never rejects too often, and often too seldom.
        p_mid: The mid-p, half of the observed table's odds taken off: nearer to its level.
    """

    n_only_a: int
    n_only_b: int
    n_rows: int
    p_exact: float
    p_mid: float


def mcnemar(
    truth_N: Rows, predicted_a_N: Rows, predicted_b_N: Rows, group_N: Rows | None = None
) -> McNemarTest:
    """Compare the accuracy of two models on the same independent rows.

    Args:
        truth_N: (N,) true labels.
        predicted_a_N: (N,) labels predicted by model a.
        predicted_b_N: (N,) labels predicted by model b.
        group_N: (N,) patient of each row, to make sure that each has one.

    Returns:
        Counts and p-values; both are 1 where the models are right on the same rows.

    Raises:
        ValueError: If a patient has several rows, lengths differ, or numbers stand beside text.

    Source: McNemar 1947; mid-p: Fagerland, Lydersen and Laake 2013, BMC Med Res Methodol 13:91.
    """
    truth = labels_of("mcnemar", "truth", truth_N)
    a = labels_of("mcnemar", "predicted a", predicted_a_N, n_rows=len(truth))
    b = labels_of("mcnemar", "predicted b", predicted_b_N, n_rows=len(truth))
    refuse_mixed("mcnemar", truth=truth, a=a, b=b)
    if group_N is not None:
        _refuse_repeats(labels_of("mcnemar", "groups", group_N, n_rows=len(truth)))
    n_only_a = int(((a == truth) & (b != truth)).sum())
    n_only_b = int(((a != truth) & (b == truth)).sum())
    n, fewer = n_only_a + n_only_b, min(n_only_a, n_only_b)
    tail = 2 * binom.cdf(fewer, n, 0.5)
    # Where both are as many, the two tails overlap in the observed table, which mid-p halves.
    mid = (
        1 - binom.pmf(fewer, n, 0.5) / 2
        if n_only_a == n_only_b
        else tail - binom.pmf(fewer, n, 0.5)
    )
    return McNemarTest(
        n_only_a=n_only_a,
        n_only_b=n_only_b,
        n_rows=len(truth),
        p_exact=float(min(1.0, tail)),
        p_mid=float(mid) if n else 1.0,
    )


def _refuse_repeats(group: np.ndarray) -> None:
    name, count = np.unique(group, return_counts=True)
    if (count > 1).any():
        most = count.argmax()
        msg = (
            f"mcnemar: needs one row a patient, since rows must be independent; got {count[most]} "
            f"rows of {str(name[most])!r}. Use paired_permutation, which swaps whole patients."
        )
        raise ValueError(msg)
