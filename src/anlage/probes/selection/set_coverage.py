"""What sets of classes reached on rows whose true class is known."""

# Shape suffixes: N rows, C classes.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anlage.probes.checks import Rows, labels_of
from anlage.probes.metrics.classification import truth_codes


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassCoverage:
    """Coverage of one class.

    Attributes:
        rows: Share of its rows whose set holds it.
        groups: The same share within each patient, averaged over patients.
        n_rows: Its rows.
        n_groups: Patients of these rows.
    """

    rows: float
    groups: float
    n_rows: int
    n_groups: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SetCoverage:
    """Coverage and sizes of sets.

    Attributes:
        rows: Share of rows whose set holds the true class; no promise is about it.
        groups: The same share within each patient, averaged over patients: what ``row`` and
            ``drawn row`` promise.
        whole_groups: Share of patients with all rows covered: what ``all rows`` promises.
        n_rows: Rows.
        n_groups: Patients.
        mean_size: Classes in a set, mean over rows.
        n_of_size: Rows by size of their set, 0 to C.
        by_class: By class that has rows.
    """

    rows: float
    groups: float
    whole_groups: float
    n_rows: int
    n_groups: int
    mean_size: float
    n_of_size: tuple[int, ...]
    by_class: dict[str, ClassCoverage]


def set_coverage(
    is_in_NC: NDArray[np.bool_], truth_N: Rows, class_C: Rows, *, group_N: ArrayLike
) -> SetCoverage:
    """Count how often sets hold the true class, by rows, patients and classes.

    Args:
        is_in_NC: (N, C) bool, as ``ConformalSets.sets`` gives.
        truth_N: (N,) true labels.
        class_C: (C,) labels of the columns.
        group_N: (N,) patients.

    Raises:
        ValueError: If shapes do not match or a label is unknown.
    """
    who = "set_coverage"
    code_N = truth_codes(truth_N, class_C)
    classes = labels_of(who, "classes", class_C)
    group = labels_of(who, "groups", group_N, n_rows=len(code_N))
    if np.shape(is_in_NC) != (len(code_N), len(classes)):
        msg = (
            f"{who}: needs a set of {len(classes)} classes for each of {len(code_N)} rows; got "
            f"shape {np.shape(is_in_NC)}. Give sets and labels of the same rows."
        )
        raise ValueError(msg)
    is_covered_N = np.asarray(is_in_NC)[np.arange(len(code_N)), code_N]
    size_N = np.asarray(is_in_NC).sum(axis=1)
    share_G = _share_of_groups(is_covered_N, group)
    return SetCoverage(
        rows=float(is_covered_N.mean()),
        groups=float(share_G.mean()),
        whole_groups=float((share_G == 1).mean()),
        n_rows=len(code_N),
        n_groups=len(share_G),
        mean_size=float(size_N.mean()),
        n_of_size=tuple(np.bincount(size_N, minlength=len(classes) + 1).tolist()),
        by_class={
            str(name): _of_class(is_covered_N[code_N == code], group[code_N == code])
            for code, name in enumerate(classes)
            if (code_N == code).any()
        },
    )


def _of_class(is_covered_N: NDArray[np.bool_], group: NDArray[np.generic]) -> ClassCoverage:
    share_G = _share_of_groups(is_covered_N, group)
    return ClassCoverage(
        rows=float(is_covered_N.mean()),
        groups=float(share_G.mean()),
        n_rows=len(is_covered_N),
        n_groups=len(share_G),
    )


def _share_of_groups(
    is_covered_N: NDArray[np.bool_], group: NDArray[np.generic]
) -> NDArray[np.float64]:
    _, code_N, count_G = np.unique(group, return_inverse=True, return_counts=True)
    share_G: NDArray[np.float64] = np.bincount(code_N, weights=is_covered_N) / count_G
    return share_G
