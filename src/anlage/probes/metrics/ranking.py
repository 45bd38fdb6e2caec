"""Metrics of how scores rank the rows: areas under the ROC and the precision-recall curve."""

# Shape suffixes: N rows (tiles), G groups (patients), C classes, B distinct scores, K distinct
# scores that some positive row has, R weightings of the groups.

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anlage.probes.metrics.group_sums import GroupSums, blocks_of_weights, ratio
from anlage.probes.metrics.metric import Columns, Metric, Statistic
from anlage.probes.metrics.score_columns import binary_columns, class_columns

Area = Callable[["Ranking", NDArray[np.float64]], NDArray[np.float64]]


class Ranking:
    """Positive rows at their distinct scores, from the highest, and the negatives among them.

    Both areas change only where a positive row stands, so the negatives between two such scores
    are summed by group at once: sorted once, a weighting costs N products and K sums. Holds at most
    3 N numbers.
    """

    def __init__(
        self,
        positive_N: NDArray[np.bool_],
        score_N: NDArray[Any],
        code_N: NDArray[np.int64],
        n_groups: int,
    ) -> None:
        _, rising_N = np.unique(score_N, return_inverse=True)
        block_N = rising_N.max() - rising_N  # 0 is the highest score
        is_met_B = np.bincount(block_N[positive_N], minlength=block_N.max() + 1) > 0
        n_met_B = np.cumsum(is_met_B)
        self.n_thresholds = int(n_met_B[-1])
        tied_N = is_met_B[block_N] & ~positive_N
        cell_N = n_met_B[block_N] - is_met_B[block_N]  # those not tied: below n_met positives

        def sums(rows: NDArray[np.bool_]) -> GroupSums:
            shape = (self.n_thresholds + 1, n_groups)
            return GroupSums(cell_N[rows], code_N[rows], shape=shape)

        self._positive, self._negative = sums(positive_N), sums(~positive_N)
        self._tied = sums(tied_N) if tied_N.any() else None

    def auroc(self, weight_GR: NDArray[np.float64]) -> NDArray[np.float64]:
        """(R,) share of pairs of a positive and a negative in the right order, ties half."""
        positive_KR = self._positive.columns_under(weight_GR)
        reached_KR = self._negative.columns_under(weight_GR).cumsum(axis=0)
        n_negative_R = reached_KR[-1]
        below_KR = n_negative_R - reached_KR
        if self._tied is not None:
            below_KR += self._tied.columns_under(weight_GR) / 2
        right_R = np.einsum("kr,kr->r", positive_KR, below_KR)
        return ratio(right_R, positive_KR.sum(axis=0) * n_negative_R)

    def average_precision(self, weight_GR: NDArray[np.float64]) -> NDArray[np.float64]:
        """(R,) mean over the positives of the precision at the score of each."""
        positive_KR = self._positive.columns_under(weight_GR)
        hit_KR = positive_KR.cumsum(axis=0)
        taken_KR = self._negative.columns_under(weight_GR).cumsum(axis=0)
        taken_KR += hit_KR
        n_positive_R = hit_KR[-1].copy()
        np.divide(hit_KR, taken_KR, out=hit_KR, where=taken_KR > 0)  # 0 where nothing is taken
        return ratio(np.einsum("kr,kr->r", positive_KR, hit_KR), n_positive_R)


def _mean_area(rankings: Sequence[Ranking], area: Area) -> Statistic:
    """The mean of an area over the rankings that have one under the weights."""

    def statistic(weight_RG: NDArray[np.float64]) -> NDArray[np.float64]:
        total_R, n_R = np.zeros(len(weight_RG)), np.zeros(len(weight_RG))
        for ranking in rankings:
            blocks = blocks_of_weights(weight_RG, n_cells=ranking.n_thresholds)
            value_R = np.concatenate([area(ranking, block) for block in blocks])
            total_R += np.nan_to_num(value_R)
            n_R += ~np.isnan(value_R)
        return ratio(total_R, n_R)

    return statistic


def _binary(name: str, area: Area) -> Metric:
    def over_groups(columns: Columns, code_N: NDArray[np.int64], n_groups: int) -> Statistic:
        positive_N, score_N = binary_columns(name, columns)
        return _mean_area([Ranking(positive_N, score_N, code_N, n_groups)], area)

    return Metric(name=name, columns=("truth", "score"), bounds=(0, 1), over_groups=over_groups)


def _one_vs_rest(name: str, area: Area) -> Metric:
    def over_groups(columns: Columns, code_N: NDArray[np.int64], n_groups: int) -> Statistic:
        truth_N, score_NC = class_columns(name, columns)
        rankings = [
            Ranking(truth_N == c, score_NC[:, c], code_N, n_groups) for c in _present(name, truth_N)
        ]
        return _mean_area(rankings, area)

    return Metric(name=name, columns=("truth", "score"), bounds=(0, 1), over_groups=over_groups)


def _one_vs_one(name: str, area: Area) -> Metric:
    def over_groups(columns: Columns, code_N: NDArray[np.int64], n_groups: int) -> Statistic:
        truth_N, score_NC = class_columns(name, columns)
        rankings = []
        for c, other in permutations(_present(name, truth_N), 2):
            rows = np.flatnonzero((truth_N == c) | (truth_N == other))
            positive = truth_N[rows] == c
            rankings.append(Ranking(positive, score_NC[rows, c], code_N[rows], n_groups))
        return _mean_area(rankings, area)

    return Metric(name=name, columns=("truth", "score"), bounds=(0, 1), over_groups=over_groups)


def _present(name: str, truth_N: NDArray[np.int64]) -> NDArray[np.int64]:
    present = np.unique(truth_N)
    if len(present) < 2:
        msg = (
            f"{name}: truth needs rows of two classes or more; got only class {present[0]}. "
            "Test on cases of other classes as well."
        )
        raise ValueError(msg)
    return present


AUROC = _binary("auroc", Ranking.auroc)
"""Area under the ROC curve of a binary truth: the chance that a positive row scores above a
negative one, ties counted half."""

AUROC_OVR = _one_vs_rest("auroc_ovr", Ranking.auroc)
"""Mean over the classes of the area of each against all others, by its column of the score."""

AUROC_OVO = _one_vs_one("auroc_ovo", Ranking.auroc)
"""Mean over the ordered pairs of classes (c, d) of the area of c against d by the column of c.

Source: Hand and Till 2001, Machine Learning 45:171, the measure M; scikit-learn's ``ovo``, macro.
Holds 6 C N numbers."""

AUPRC = _binary("auprc", Ranking.average_precision)
"""Average precision of a binary truth: a step at each distinct score, nothing interpolated."""

AUPRC_MACRO = _one_vs_rest("auprc_macro", Ranking.average_precision)
"""Mean over the classes of the average precision of each against all others."""
