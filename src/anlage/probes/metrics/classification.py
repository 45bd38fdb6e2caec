"""Metrics of predicted classes: accuracy, balanced accuracy, precision, recall and F1."""

# Shape suffixes: N rows (tiles), G groups (patients), C classes, R weightings of the groups.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anlage.probes.checks import Rows, labels_of
from anlage.probes.metrics.group_sums import GroupSums, ratio
from anlage.probes.metrics.metric import Columns, Metric, Statistic


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Margins:
    """What F1 and its kin need of a confusion matrix: its diagonal and its two margins.

    Attributes:
        hit_RC: (R, C) weight of the rows of each class predicted as that class.
        true_RC: (R, C) weight of the rows of each class.
        predicted_RC: (R, C) weight of the rows predicted as each class.
    """

    hit_RC: NDArray[np.float64]
    true_RC: NDArray[np.float64]
    predicted_RC: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ConfusionMatrix:
    """How often each class was predicted as each class.

    Attributes:
        class_C: (C,) labels, true or predicted, sorted, or in the order given.
        count_CC: (C, C) int64 rows; line i holds the rows that are truly ``class_C[i]``.
    """

    class_C: NDArray[Any]
    count_CC: NDArray[np.int64]


def truth_codes(truth_N: Rows, class_C: Rows) -> NDArray[np.int64]:
    """The place of each row's true class among the classes, such as the columns of a score.

    Args:
        truth_N: (N,) true labels.
        class_C: (C,) the classes, in the order of the columns, each once.

    Returns:
        (N,) int64, 0 to C - 1.

    Raises:
        ValueError: If a label is none of the classes, or a class is given twice.
    """
    truth = labels_of("truth_codes", "truth", truth_N)
    classes = labels_of("truth_codes", "classes", class_C)
    refuse_mixed("truth_codes", truth=truth, classes=classes)
    rank_C = np.argsort(classes, kind="stable")
    ordered = classes[rank_C]
    if (ordered[1:] == ordered[:-1]).any():
        msg = f"truth_codes: needs each class once; got {classes.tolist()}. Drop the repeated one."
        raise ValueError(msg)
    place_N = np.minimum(np.searchsorted(ordered, truth), len(ordered) - 1)
    unknown_N = ordered[place_N] != truth
    if unknown_N.any():
        names = np.unique(truth[unknown_N]).tolist()
        msg = (
            f"truth_codes: truth needs labels among the {len(classes)} classes "
            f"{classes[:20].tolist()}; got {names[:10]} in {int(unknown_N.sum())} rows. "
            "Drop these rows, or train on these classes as well."
        )
        raise ValueError(msg)
    codes: NDArray[np.int64] = rank_C[place_N].astype(np.int64)
    return codes


def coded_pair(
    who: str, truth_N: Rows, predicted_N: Rows
) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64]]:
    """All classes, true or predicted, sorted, and the codes of both columns among them.

    Raises:
        ValueError: If there is no row, lengths differ, a label is missing, or one column holds
            numbers and the other text.
    """
    truth = labels_of(who, "truth", truth_N)
    predicted = labels_of(who, "predicted", predicted_N, n_rows=len(truth))
    refuse_mixed(who, truth=truth, predicted=predicted)
    class_C, code_2N = np.unique(np.concatenate([truth, predicted]), return_inverse=True)
    return class_C, code_2N[: len(truth)], code_2N[len(truth) :]


def refuse_mixed(who: str, **labels: NDArray[Any]) -> None:
    """Refuse numbers beside text, which would never be equal.

    Raises:
        ValueError: If one array holds numbers and the other text.
    """
    kinds = {"text" if array.dtype.kind in "USTO" else "numbers" for array in labels.values()}
    is_mixed = len(kinds) == 2 and all(array.dtype.kind != "O" for array in labels.values())
    if is_mixed:
        msg = (
            f"{who}: {' and '.join(labels)} need labels of one kind; got "
            f"{' and '.join(str(array.dtype) for array in labels.values())}. "
            "Turn both into text or both into integers."
        )
        raise ValueError(msg)


def confusion_matrix(truth_N: Rows, predicted_N: Rows) -> ConfusionMatrix:
    """Count rows by true and predicted class.

    Args:
        truth_N: (N,) true labels.
        predicted_N: (N,) predicted labels.

    Returns:
        Classes of both columns, sorted, and their (C, C) counts, as scikit-learn's.

    Raises:
        ValueError: If there is no row or the columns do not fit.
    """
    class_C, true_N, guess_N = coded_pair("confusion_matrix", truth_N, predicted_N)
    n = len(class_C)
    count = np.bincount(true_N * n + guess_N, minlength=n * n).reshape(n, n)
    return ConfusionMatrix(class_C=class_C, count_CC=count.astype(np.int64))


def _metric(
    name: str, value: Callable[[Margins], NDArray[np.float64]], *, has_classes: bool = True
) -> Metric:
    """A metric of the margins, which are three sparse (C, G) tables of at most N counts each."""

    def over_groups(columns: Columns, code_N: NDArray[np.int64], n_groups: int) -> Statistic:
        truth_N, predicted_N = columns
        class_C, true_N, guess_N = coded_pair(name, truth_N, predicted_N)
        shape = (len(class_C), n_groups)
        is_hit_N = true_N == guess_N
        hits = GroupSums(true_N[is_hit_N], code_N[is_hit_N], shape=shape)
        trues = GroupSums(true_N, code_N, shape=shape)
        guesses = GroupSums(guess_N, code_N, shape=shape)

        def statistic(weight_RG: NDArray[np.float64]) -> NDArray[np.float64]:
            margins = Margins(
                hit_RC=hits.under(weight_RG),
                true_RC=trues.under(weight_RG),
                predicted_RC=guesses.under(weight_RG),
            )
            return value(margins)

        return statistic

    return Metric(
        name=name,
        columns=("truth", "predicted"),
        bounds=(0.0, 1.0),
        has_classes=has_classes,
        over_groups=over_groups,
    )


def _accuracy(margins: Margins) -> NDArray[np.float64]:
    return ratio(margins.hit_RC.sum(axis=1), margins.true_RC.sum(axis=1))


def _balanced_accuracy(margins: Margins) -> NDArray[np.float64]:
    recall_RC = _share(margins.hit_RC, margins.true_RC)
    return ratio(recall_RC.sum(axis=1), (margins.true_RC > 0).sum(axis=1))


def _macro_f1(margins: Margins) -> NDArray[np.float64]:
    return _mean_of_seen(_f1(margins), margins)


def _weighted_f1(margins: Margins) -> NDArray[np.float64]:
    return ratio((_f1(margins) * margins.true_RC).sum(axis=1), margins.true_RC.sum(axis=1))


def _macro_precision(margins: Margins) -> NDArray[np.float64]:
    return _mean_of_seen(_share(margins.hit_RC, margins.predicted_RC), margins)


def _macro_recall(margins: Margins) -> NDArray[np.float64]:
    return _mean_of_seen(_share(margins.hit_RC, margins.true_RC), margins)


def _f1(margins: Margins) -> NDArray[np.float64]:
    return _share(2 * margins.hit_RC, margins.true_RC + margins.predicted_RC)


def _mean_of_seen(value_RC: NDArray[np.float64], margins: Margins) -> NDArray[np.float64]:
    """Mean over the classes that are true or predicted somewhere; the others have value 0."""
    is_seen_RC = margins.true_RC + margins.predicted_RC > 0
    return ratio(value_RC.sum(axis=1), is_seen_RC.sum(axis=1))


def _share(part_RC: NDArray[np.float64], whole_RC: NDArray[np.float64]) -> NDArray[np.float64]:
    share: NDArray[np.float64] = part_RC / np.where(whole_RC > 0, whole_RC, 1)
    return share


ACCURACY = _metric("accuracy", _accuracy, has_classes=False)
"""Share of the rows predicted right."""

BALANCED_ACCURACY = _metric("balanced_accuracy", _balanced_accuracy)
"""Mean over the true classes of the share of each predicted right; a class without a row is left
out, and a class that is only predicted is simply wrong."""

MACRO_F1 = _metric("macro_f1", _macro_f1)
"""Mean F1 = 2 hits / (true + predicted) over the classes true or predicted somewhere."""

WEIGHTED_F1 = _metric("weighted_f1", _weighted_f1, has_classes=False)
"""Mean F1 over the classes, each weighed by its true rows."""

MACRO_PRECISION = _metric("macro_precision", _macro_precision)
"""Mean precision over the classes true or predicted somewhere; 0 for one never predicted."""

MACRO_RECALL = _metric("macro_recall", _macro_recall)
"""Mean recall over the classes true or predicted somewhere; 0 for one that is only predicted,
which is where it parts from the balanced accuracy."""
