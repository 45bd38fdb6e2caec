"""Conformal prediction sets whose promise is about new patients, not about new tiles."""

# Shape suffixes: N all rows, V rows of the validation side, C classes.

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anlage.probes.checks import Rows, labels_of
from anlage.probes.selection.nonconformity import Nonconformity
from anlage.probes.selection.validation import (
    ChosenOn,
    ValidationSide,
    probability_table,
    validation_side,
)
from anlage.probes.splits.split import Split

Promise = Literal["row", "drawn row", "all rows"]
PROMISES = {
    "row": "the true class of one random row of a new patient is in its set",
    "drawn row": "the true class of one random row of a new patient is in its set",
    "all rows": "the true classes of all rows of a new patient are in their sets",
}
ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ConformalSets:
    """A calibrated rule that gives each row a set of classes.

    Attributes:
        cutoff: Classes of a nonconformity up to this are in the set.
        coverage: Promised share.
        promise: To what the share refers.
        nonconformity: How odd a class is for a row.
        class_C: (C,) labels of the columns.
        seed: Of what was drawn.
        chosen_on: Validation side it was calibrated on.
    """

    cutoff: float
    coverage: float
    promise: Promise
    nonconformity: Nonconformity
    class_C: NDArray[Any]
    seed: int
    chosen_on: ChosenOn

    @property
    def guarantee(self) -> str:
        """What is promised, in one sentence."""
        return (
            f"With probability {self.coverage:g} or more, {PROMISES[self.promise]}: on average "
            f"over patients like the {self.chosen_on.n_groups} of the calibration and over "
            "calibrations, not for each class and not for patients of another site."
        )

    def sets(self, probability_NC: Rows, group_N: ArrayLike | None = None) -> NDArray[np.bool_]:
        """(N, C) whether each class is in the set of each row; sets may be empty.

        Randomised sets are drawn row by row from the seed, so that rows given in another order or
        in blocks get other draws; give all rows at once.

        Args:
            probability_NC: (N, C) probabilities of the classifier that was calibrated.
            group_N: (N,) patients; given, those of the calibration are refused.

        Raises:
            ValueError: If these are no probabilities of the classes, or patients are shared.
        """
        who = "ConformalSets"
        table = probability_table(who, "probabilities", probability_NC, n_classes=len(self.class_C))
        self.chosen_on.refuse_groups(who, group_N, n_rows=len(table))
        oddity_NC = self.nonconformity.of_classes(table, np.random.default_rng((self.seed, 1)))
        return oddity_NC <= self.cutoff


def conformal_sets(
    probability_NC: Rows,
    truth_N: Rows,
    class_C: Rows,
    *,
    split: Split,
    group_N: ArrayLike,
    coverage: float = 0.9,
    promise: Promise = "row",
    nonconformity: Nonconformity | None = None,
    seed: int = 0,
) -> ConformalSets:
    """Calibrate prediction sets on the validation side of a split, patients being exchangeable.

    Rows of one patient are alike, so that a quantile over rows promises nothing for a new patient.
    Three promises can be kept, with n patients calibrated on:

    - ``row``: quantile of all rows where each patient weighs 1 / (n + 1), shared by its rows, and
      the new patient 1 / (n + 1) at infinity (hierarchical conformal prediction);
    - ``drawn row``: one row drawn of each patient, then the ordinary quantile, the
      ceil((n + 1) coverage)-th smallest; the same promise with more chance in it (subsampling);
    - ``all rows``: the same quantile of each patient's largest value; larger sets, which hold for
      all rows of a new patient at once.

    Args:
        probability_NC: (N, C) probabilities of all rows by a head trained on the train side; rows
            outside the validation side are not read.
        truth_N: (N,) true labels, read likewise.
        class_C: (C,) labels of the columns.
        split: With a validation side, as by ``inner_split``; nothing else may have been chosen on
            that side (a temperature or threshold needs another).
        group_N: (N,) patients.
        coverage: Promised share, above 0 and below 1.
        promise: To what it refers.
        nonconformity: ``LAC`` (default), ``APS`` or ``raps(...)`` of ``nonconformity``.
        seed: Of drawn rows and randomised sets.

    Raises:
        ValueError: If the validation side has too few patients for the share, is of one class or
            empty, a patient is on two sides, or a label or probability is unusable.

    Source: Vovk et al. 2005; Dunn, Wasserman and Ramdas 2022, Distribution-free prediction sets
        for two-layer hierarchical models (subsampling); Lee, Barber and Willett 2023,
        Distribution-free inference with hierarchical data, arXiv:2306.06342 (weights). ``all
        rows`` is split conformal prediction with patients as the points.
    """
    who = "conformal_sets"
    if promise not in PROMISES or not 0 < coverage < 1:
        msg = (
            f"{who}: needs a promise of {', '.join(PROMISES)} and a coverage above 0 and below 1; "
            f"got {promise!r} and {coverage}. Leave them at 'row' and 0.9."
        )
        raise ValueError(msg)
    side = validation_side(who, split, group_N)
    _refuse_few(who, side.chosen_on.n_groups, coverage)
    classes = labels_of(who, "classes", class_C)
    code_V = side.codes(who, truth_N, classes)
    taken = side.take(who, "probabilities", probability_NC)
    table = probability_table(who, "probabilities", taken, n_classes=len(classes))
    measure = nonconformity or Nonconformity()
    generator = np.random.default_rng((seed, 0))
    oddity_VC = measure.of_classes(table, generator)
    oddity_V = np.take_along_axis(oddity_VC, code_V[:, None], axis=1)[:, 0]
    return ConformalSets(
        cutoff=_cutoff(oddity_V, side, generator, coverage=coverage, promise=promise),
        coverage=coverage,
        promise=promise,
        nonconformity=measure,
        class_C=classes,
        seed=seed,
        chosen_on=side.chosen_on,
    )


def patients_needed(coverage: float) -> int:
    """Fewest patients to calibrate on for a promised share: coverage / (1 - coverage), rounded up.

    Raises:
        ValueError: If the share is not above 0 and below 1.
    """
    if not 0 < coverage < 1:
        msg = f"patients_needed: needs a coverage above 0 and below 1; got {coverage}. Try 0.9."
        raise ValueError(msg)
    return max(1, ceil(coverage / (1 - coverage) - ROUNDING))


def _cutoff(
    oddity_V: NDArray[np.float64],
    side: ValidationSide,
    generator: np.random.Generator,
    *,
    coverage: float,
    promise: Promise,
) -> float:
    n_groups = side.chosen_on.n_groups
    _, code_V = np.unique(side.group_V, return_inverse=True)
    if promise == "row":
        weight_V = side.weights(group_counts_once=True) * n_groups / (n_groups + 1)
        order_V = np.argsort(oddity_V, kind="stable")
        reached_V = weight_V[order_V].cumsum()
        return float(oddity_V[order_V][np.argmax(reached_V >= coverage - ROUNDING)])
    if promise == "drawn row":
        order_V = generator.permutation(len(oddity_V))
        first_G = np.unique(code_V[order_V], return_index=True)[1]
        oddity_G = oddity_V[order_V[first_G]]
    else:
        oddity_G = np.full(n_groups, -np.inf)
        np.maximum.at(oddity_G, code_V, oddity_V)
    rank = ceil((n_groups + 1) * coverage - ROUNDING)
    return float(np.sort(oddity_G)[rank - 1])


def _refuse_few(who: str, n_groups: int, coverage: float) -> None:
    needed = patients_needed(coverage)
    if n_groups < needed:
        msg = (
            f"{who}: a coverage of {coverage:g} needs {needed} patients or more to calibrate on; "
            f"got {n_groups}, which can promise {n_groups / (n_groups + 1):.3g} at most. Add "
            "patients to the validation side, or ask for less."
        )
        raise ValueError(msg)
