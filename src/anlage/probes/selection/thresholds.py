"""Thresholds on a score, chosen on the validation side of a split and nowhere else."""

# Shape suffixes: N all rows, V rows of the validation side, K cuts.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anlage.probes.checks import Rows, array_of
from anlage.probes.selection.validation import (
    ChosenOn,
    ValidationSide,
    score_table,
    validation_side,
)
from anlage.probes.splits.split import Split


@dataclass(frozen=True, kw_only=True, slots=True)
class Threshold:
    """A threshold and where it comes from.

    Attributes:
        value: Rows with this score or more are called positive; a score of the validation side, or
            the next number above the largest where none is to be called positive.
        rule: How it was chosen, in words.
        sensitivity: Of the validation side at this value. It was chosen there, so it flatters.
        specificity: Likewise.
        n_positive_groups: Patients of the validation side with a positive row.
        n_negative_groups: With a negative row.
        chosen_on: Validation side it was chosen on.
    """

    value: float
    rule: str
    sensitivity: float
    specificity: float
    n_positive_groups: int
    n_negative_groups: int
    chosen_on: ChosenOn

    def apply(self, score_N: Rows, group_N: ArrayLike | None = None) -> NDArray[np.bool_]:
        """(N,) whether each row is called positive.

        Args:
            score_N: (N,) scores.
            group_N: (N,) patients; given, those that the threshold was chosen on are refused.

        Raises:
            ValueError: If a score is not finite or patients are shared.
        """
        score = _column("Threshold", score_N)
        self.chosen_on.refuse_groups("Threshold", group_N, n_rows=len(score))
        return score >= self.value


def youden_threshold(
    score_N: Rows, truth_N: Rows, *, split: Split, group_N: ArrayLike
) -> Threshold:
    """The cut of the largest sensitivity + specificity - 1; of equal ones the lowest.

    Args:
        score_N: (N,) scores of all rows, larger for positive; rows outside the validation side
            are not read, and may hold anything.
        truth_N: (N,) 0 / 1 or bool, read likewise.
        split: With a validation side, as by ``inner_split``.
        group_N: (N,) patients.

    Raises:
        ValueError: If the validation side is empty or of one class, a patient is on two sides, or
            scores or labels are unusable.

    Source: Youden 1950, Index for rating diagnostic tests, Cancer 3:32.
    """
    cuts = _cuts("youden_threshold", score_N, truth_N, split=split, group_N=group_N)
    index_K = cuts.true_K * cuts.n_negative - cuts.false_K * cuts.n_positive  # whole: ties exact
    return cuts.threshold(_last_largest(index_K), "largest Youden index")


def sensitivity_threshold(
    score_N: Rows, truth_N: Rows, *, at_least: float, split: Split, group_N: ArrayLike
) -> Threshold:
    """The highest cut with the sensitivity asked for, hence the largest specificity.

    Args:
        score_N: (N,) scores, as in ``youden_threshold``.
        truth_N: (N,) 0 / 1 or bool.
        at_least: Sensitivity on the validation side, above 0, at most 1.
        split: With a validation side.
        group_N: (N,) patients.

    Raises:
        ValueError: If ``at_least`` is no such share, or as in ``youden_threshold``.
    """
    _refuse_share("sensitivity_threshold", at_least)
    cuts = _cuts("sensitivity_threshold", score_N, truth_N, split=split, group_N=group_N)
    place = int(np.argmax(cuts.true_K / cuts.n_positive >= at_least))
    return cuts.threshold(place, f"sensitivity of at least {at_least:g}")


def specificity_threshold(
    score_N: Rows, truth_N: Rows, *, at_least: float, split: Split, group_N: ArrayLike
) -> Threshold:
    """The lowest cut with the specificity asked for, hence the largest sensitivity.

    Args:
        score_N: (N,) scores, as in ``youden_threshold``.
        truth_N: (N,) 0 / 1 or bool.
        at_least: Specificity on the validation side, above 0, at most 1.
        split: With a validation side.
        group_N: (N,) patients.

    Raises:
        ValueError: If ``at_least`` is no such share, or as in ``youden_threshold``.
    """
    _refuse_share("specificity_threshold", at_least)
    cuts = _cuts("specificity_threshold", score_N, truth_N, split=split, group_N=group_N)
    specificity_K = (cuts.n_negative - cuts.false_K) / cuts.n_negative
    place = int(np.flatnonzero(specificity_K >= at_least)[-1])
    return cuts.threshold(place, f"specificity of at least {at_least:g}")


def f1_threshold(score_N: Rows, truth_N: Rows, *, split: Split, group_N: ArrayLike) -> Threshold:
    """The cut of the largest F1 of the positive class; of equal ones the lowest.

    F1 depends on the share of positives, so the cut does not carry over to another prevalence.

    Raises:
        ValueError: As in ``youden_threshold``, whose arguments these are.
    """
    cuts = _cuts("f1_threshold", score_N, truth_N, split=split, group_N=group_N)
    f1_K = 2 * cuts.true_K / (cuts.true_K + cuts.false_K + cuts.n_positive)
    return cuts.threshold(_last_largest(f1_K), "largest F1")


def cost_threshold(
    score_N: Rows,
    truth_N: Rows,
    *,
    cost_of_miss: float,
    cost_of_alarm: float,
    split: Split,
    group_N: ArrayLike,
) -> Threshold:
    """The cut of the least summed cost of misses and false alarms; of equal ones the lowest.

    Args:
        score_N: (N,) scores, as in ``youden_threshold``.
        truth_N: (N,) 0 / 1 or bool.
        cost_of_miss: Of a positive row below the cut, above 0, in any unit.
        cost_of_alarm: Of a negative row at or above the cut, above 0, in the same unit.
        split: With a validation side.
        group_N: (N,) patients.

    Raises:
        ValueError: If a cost is not above 0, or as in ``youden_threshold``.
    """
    who = "cost_threshold"
    if not (0 < cost_of_miss < np.inf and 0 < cost_of_alarm < np.inf):
        msg = (
            f"{who}: needs finite costs above 0; got {cost_of_miss} and {cost_of_alarm}. "
            "Give them in one unit, such as 10 and 1."
        )
        raise ValueError(msg)
    cuts = _cuts(who, score_N, truth_N, split=split, group_N=group_N)
    cost_K = cost_of_miss * (cuts.n_positive - cuts.true_K) + cost_of_alarm * cuts.false_K
    rule = f"least cost at {cost_of_miss:g} a miss and {cost_of_alarm:g} a false alarm"
    return cuts.threshold(_last_largest(-cost_K), rule)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Cuts:
    """What each cut calls positive, from none at all to every row."""

    value_K: NDArray[np.float64]  # falling
    true_K: NDArray[np.int64]
    false_K: NDArray[np.int64]
    n_positive: int
    n_negative: int
    n_groups: tuple[int, int]
    chosen_on: ChosenOn

    def threshold(self, place: int, rule: str) -> Threshold:
        return Threshold(
            value=float(self.value_K[place]),
            rule=rule,
            sensitivity=float(self.true_K[place] / self.n_positive),
            specificity=float(1 - self.false_K[place] / self.n_negative),
            n_positive_groups=self.n_groups[0],
            n_negative_groups=self.n_groups[1],
            chosen_on=self.chosen_on,
        )


def _cuts(who: str, score_N: Rows, truth_N: Rows, *, split: Split, group_N: ArrayLike) -> _Cuts:
    side = validation_side(who, split, group_N)
    score_V = _column(who, side.take(who, "scores", score_N))
    is_positive_V = _binary(who, side, truth_N)
    value_K, code_V = np.unique(-score_V, return_inverse=True)
    true_K = np.bincount(code_V[is_positive_V], minlength=len(value_K)).cumsum()
    false_K = np.bincount(code_V[~is_positive_V], minlength=len(value_K)).cumsum()
    none_positive = np.nextafter(score_V.max(), np.inf)
    return _Cuts(
        value_K=np.concatenate([[none_positive], -value_K]),
        true_K=np.concatenate([[0], true_K]),
        false_K=np.concatenate([[0], false_K]),
        n_positive=int(is_positive_V.sum()),
        n_negative=int((~is_positive_V).sum()),
        n_groups=(
            len(np.unique(side.group_V[is_positive_V])),
            len(np.unique(side.group_V[~is_positive_V])),
        ),
        chosen_on=side.chosen_on,
    )


def _binary(who: str, side: ValidationSide, truth_N: Rows) -> NDArray[np.bool_]:
    truth_V = side.take(who, "truth", truth_N)
    values = np.unique(truth_V).tolist() if truth_V.dtype.kind in "biuf" else ["labels"]
    if not set(values) <= {0, 1}:
        msg = (
            f"{who}: truth needs 0 and 1, or False and True; got {values[:5]}. "
            "Give truth == name of the positive class."
        )
        raise ValueError(msg)
    side.refuse_one_class(who, truth_V)
    is_positive_V: NDArray[np.bool_] = truth_V == 1
    return is_positive_V


def _column(who: str, score_N: Rows) -> NDArray[np.float64]:
    score = array_of(score_N).astype(np.float64)
    if score.ndim != 1:
        msg = (
            f"{who}: needs one score a row; got shape {score.shape}. "
            "Give the column of the positive class."
        )
        raise ValueError(msg)
    return score_table(who, "scores", score[:, None], n_classes=1)[:, 0]


def _last_largest(value_K: NDArray[np.number]) -> int:
    return len(value_K) - 1 - int(np.argmax(value_K[::-1]))


def _refuse_share(who: str, at_least: float) -> None:
    if not 0 < at_least <= 1:
        msg = f"{who}: at_least needs to be above 0 and at most 1; got {at_least}. Try 0.95."
        raise ValueError(msg)
