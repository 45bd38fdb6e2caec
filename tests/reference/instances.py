"""AJI, AJI+ and panoptic quality of one image, mask by mask."""

from __future__ import annotations

import itertools

import numpy as np


def masks_of(image):
    return [image == number for number in np.unique(image) if number != 0]


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def slow_aji(truth, predicted):
    """Kumar et al. 2017, algorithm 1."""
    shared = union = 0
    used = set()
    guesses = masks_of(predicted)
    for mask in masks_of(truth):
        values = [iou(mask, guess) for guess in guesses]
        if not values or max(values) == 0:
            union += mask.sum()
            continue
        best = int(np.argmax(values))
        shared += (mask & guesses[best]).sum()
        union += (mask | guesses[best]).sum()
        used.add(best)
    union += sum(guess.sum() for j, guess in enumerate(guesses) if j not in used)
    return shared / union


def slow_aji_plus(truth, predicted):
    """Every way to pair instances one to one; few instances only."""
    truths, guesses = masks_of(truth), masks_of(predicted)
    padded = [*range(len(guesses)), *[None] * len(truths)]
    best = (-1.0, 0.0)
    for chosen in set(itertools.permutations(padded, len(truths))):
        pairs = [(i, j) for i, j in enumerate(chosen) if j is not None]
        pairs = [(i, j) for i, j in pairs if (truths[i] & guesses[j]).any()]
        shared = sum((truths[i] & guesses[j]).sum() for i, j in pairs)
        union = sum((truths[i] | guesses[j]).sum() for i, j in pairs)
        union += sum(mask.sum() for i, mask in enumerate(truths) if i not in {p[0] for p in pairs})
        union += sum(mask.sum() for j, mask in enumerate(guesses) if j not in {p[1] for p in pairs})
        total = sum(iou(truths[i], guesses[j]) for i, j in pairs)
        best = max(best, (total, shared / union))
    return best[1]


def slow_pq(truth, predicted):
    """Kirillov et al. 2019, equation 1: (PQ, DQ, SQ)."""
    truths, guesses = masks_of(truth), masks_of(predicted)
    values = [iou(a, b) for a in truths for b in guesses]
    matched = [value for value in values if value > 0.5]
    dq = len(matched) / (
        len(matched) + (len(guesses) - len(matched)) / 2 + (len(truths) - len(matched)) / 2
    )
    sq = float(np.mean(matched)) if matched else 0.0
    return dq * sq, dq, sq
