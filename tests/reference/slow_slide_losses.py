"""Slow, obvious losses of slides: float64, one bag and one term at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def slow_binary_loss(logit: float, target: float, *, positive_weight: float = 1.0) -> float:
    chance = sigmoid(logit)
    return -positive_weight * math.log(chance) if target == 1 else -math.log(1 - chance)


def slow_class_loss(logits: Sequence[float], target: int, weight: float = 1.0) -> float:
    total = sum(math.exp(logit) for logit in logits)
    return -weight * math.log(math.exp(logits[target]) / total)


def slow_label_loss(
    logits: Sequence[float], targets: Sequence[float], weights: Sequence[float]
) -> float:
    terms = [
        slow_binary_loss(logit, target, positive_weight=weight)
        for logit, target, weight in zip(logits, targets, weights, strict=True)
        if not math.isnan(target)
    ]
    return sum(terms) / len(terms) if terms else 0.0


def slow_ordinal_loss(logits: Sequence[float], grade: int, *, link: str) -> float:
    if link == "coral":
        return sum(slow_binary_loss(logit, grade > k) for k, logit in enumerate(logits))
    above = [1.0, *(sigmoid(logit) for logit in logits), 0.0]
    return -math.log(above[grade] - above[grade + 1])


def slow_hazard_loss(logits: Sequence[float], place: int, event: int, weight: float) -> float:
    alive = 1.0
    for logit in logits[:place]:
        alive *= 1 - sigmoid(logit)
    if event:
        return -math.log(alive * sigmoid(logits[place]))
    return -weight * math.log(alive * (1 - sigmoid(logits[place])))


def slow_cox_loss(
    risks: Sequence[float], times: Sequence[float], events: Sequence[int], *, ties: str
) -> float:
    """Efron's by its definition: the l-th of d tied events leaves out l / d of their weight."""
    total, n_events = 0.0, 0
    for time in sorted({t for t, e in zip(times, events, strict=True) if e}):
        tied = [i for i in range(len(times)) if times[i] == time and events[i]]
        at_risk = sum(math.exp(risks[i]) for i in range(len(times)) if times[i] >= time)
        tied_weight = sum(math.exp(risks[i]) for i in tied)
        for number, i in enumerate(tied):
            left_out = number / len(tied) * tied_weight if ties == "efron" else 0.0
            total += math.log(at_risk - left_out) - risks[i]
            n_events += 1
    return total / n_events


def slow_regression_loss(
    values: Sequence[float], targets: Sequence[float], *, penalty: str, delta: float
) -> float:
    terms = []
    for value, target in zip(values, targets, strict=True):
        error = abs(value - target)
        if penalty == "mse":
            terms.append(error**2)
        elif error <= delta:
            terms.append(error**2 / 2)
        else:
            terms.append(delta * (error - delta / 2))
    return sum(terms) / len(terms)
