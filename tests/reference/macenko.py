"""Macenko's stain vectors, one pixel after the other."""

from __future__ import annotations

import math

import numpy as np


def stains(pixels: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (2, 3) and strongest concentrations (2,) of tissue pixels."""
    density = [[-math.log((value + 1) / 240) for value in pixel] for pixel in pixels]
    tissue = [row for row in density if min(row) >= 0.15]
    mean = [sum(row[c] for row in tissue) / len(tissue) for c in range(3)]
    covariance = np.zeros((3, 3))
    for row in tissue:
        for i in range(3):
            for j in range(3):
                covariance[i, j] += (row[i] - mean[i]) * (row[j] - mean[j]) / (len(tissue) - 1)
    values, vectors = np.linalg.eig(covariance)
    second, first = (vectors[:, k].real for k in np.argsort(values.real)[1:])
    first = first * np.sign(first @ mean)
    angles = [math.atan2(np.dot(row, first), np.dot(row, second)) for row in tissue]
    found = [
        math.cos(angle) * second + math.sin(angle) * first
        for angle in (np.percentile(angles, 1), np.percentile(angles, 99))
    ]
    found.sort(key=lambda vector: -vector[0])
    amounts = [np.linalg.lstsq(np.stack(found, axis=1), row, rcond=None)[0] for row in tissue]
    return np.stack(found), np.percentile(amounts, 99, axis=0)
