"""Temperature scaling: one number that makes a classifier's probabilities honest."""

# Shape suffixes: N all rows, V rows of the validation side, C classes.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import log_softmax, softmax

from anlage.probes.checks import Rows, labels_of
from anlage.probes.selection.validation import (
    ChosenOn,
    probability_table,
    score_table,
    validation_side,
)
from anlage.probes.splits.split import Split

LEAST, MOST = 0.05, 20.0
LEAST_PROBABILITY = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class TemperatureScaling:
    """A temperature and where it comes from.

    Attributes:
        temperature: What logits are divided by; above 1 softens overconfident probabilities.
        is_at_bound: Whether the best lies outside 0.05 to 20, so that the bound is given: every
            validation row is right (any lower is better), or the logits tell nothing.
        nll_before: Mean negative log-likelihood of the validation side at temperature 1, nats.
        nll_after: The same at this temperature; never larger where 1 is within the bounds.
        n_classes: C, columns of the logits.
        chosen_on: Validation side it was chosen on.
    """

    temperature: float
    is_at_bound: bool
    nll_before: float
    nll_after: float
    n_classes: int
    chosen_on: ChosenOn

    def apply(self, logits_NC: Rows, group_N: ArrayLike | None = None) -> NDArray[np.float64]:
        """(N, C) float64 probabilities of rows; the order of classes in a row does not change.

        Args:
            logits_NC: (N, C) logits.
            group_N: (N,) patients; given, those that the temperature was chosen on are refused.

        Raises:
            ValueError: If logits are not finite or of other classes, or patients are shared.
        """
        who = "TemperatureScaling"
        logits = score_table(who, "logits", logits_NC, n_classes=self.n_classes)
        self.chosen_on.refuse_groups(who, group_N, n_rows=len(logits))
        probability: NDArray[np.float64] = softmax(logits / self.temperature, axis=1)
        return probability


def temperature_scaling(
    logits_NC: Rows,
    truth_N: Rows,
    class_C: Rows,
    *,
    split: Split,
    group_N: ArrayLike,
    group_counts_once: bool = False,
) -> TemperatureScaling:
    """The temperature of the least negative log-likelihood on the validation side of a split.

    The likelihood is convex in 1 / temperature; the zero of its derivative is found by Brent's
    method in float64.

    Args:
        logits_NC: (N, C) logits of all rows of a head trained on the train side; rows outside the
            validation side are not read and may hold anything.
        truth_N: (N,) true labels, read likewise.
        class_C: (C,) labels of the columns.
        split: With a validation side, as by ``inner_split``.
        group_N: (N,) patients.
        group_counts_once: Whether each patient weighs the same, instead of each row.

    Raises:
        ValueError: If the validation side is empty or of one class, a patient is on two sides, a
            label is unknown, or logits are not finite.

    Source: Guo et al. 2017, On calibration of modern neural networks, arXiv:1706.04599, 4.2.
    """
    who = "temperature_scaling"
    side = validation_side(who, split, group_N)
    classes = labels_of(who, "classes", class_C)
    code_V = side.codes(who, truth_N, classes)
    taken = side.take(who, "logits", logits_NC)
    logits_VC = score_table(who, "logits", taken, n_classes=len(classes))
    weight_V = side.weights(group_counts_once=group_counts_once)
    true_V = np.take_along_axis(logits_VC, code_V[:, None], axis=1)[:, 0]

    def slope(log_sharpness: float) -> float:
        """Derivative of the likelihood by sharpness = 1 / temperature; rises with it."""
        expected_V = (softmax(np.exp(log_sharpness) * logits_VC, axis=1) * logits_VC).sum(axis=1)
        return float(weight_V @ (expected_V - true_V))

    def nll(temperature: float) -> float:
        log_p_VC = log_softmax(logits_VC / temperature, axis=1)
        return float(-weight_V @ np.take_along_axis(log_p_VC, code_V[:, None], axis=1)[:, 0])

    temperature, is_at_bound = 1.0, True
    least, most = np.log(1 / MOST), np.log(1 / LEAST)
    if slope(least) >= 0:
        temperature = MOST
    elif slope(most) <= 0:
        temperature = LEAST
    else:
        temperature, is_at_bound = float(np.exp(-brentq(slope, least, most, xtol=1e-12))), False
    return TemperatureScaling(
        temperature=temperature,
        is_at_bound=is_at_bound,
        nll_before=nll(1.0),
        nll_after=nll(temperature),
        n_classes=len(classes),
        chosen_on=side.chosen_on,
    )


def logits_of_probabilities(
    probability_NC: Rows, *, least: float = LEAST_PROBABILITY
) -> NDArray[np.float64]:
    """(N, C) float64 log-probabilities, which are logits of the same probabilities.

    Args:
        probability_NC: (N, C) probabilities, such as shares of the votes of neighbours.
        least: What lower probabilities count as, above 0: a class without a vote is not
            impossible. The temperature of votes depends on it.

    Raises:
        ValueError: If these are no probabilities, or ``least`` is not above 0 and below 1.
    """
    who = "logits_of_probabilities"
    if not 0 < least < 1:
        msg = f"{who}: least needs to be above 0 and below 1; got {least}. Leave it at 1e-6."
        raise ValueError(msg)
    n_classes = np.shape(probability_NC)[-1] if np.ndim(probability_NC) == 2 else 2
    table = probability_table(who, "probabilities", probability_NC, n_classes=n_classes)
    logits: NDArray[np.float64] = np.log(np.maximum(table, least))
    return logits
